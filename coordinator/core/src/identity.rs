//! Who belongs to the cluster: the coordinators' CAs, join tokens, members, and whom
//! nobody is to believe any more.
//!
//! A token is redeemed by a key: the same key gets the same answer again and uses up
//! nothing, so that a joiner whose answer was lost asks again. A name belongs to the key
//! that joined with it for as long as that key's certificate can last, so that nobody
//! with a token takes the name of another; only a token that is bound to the name may.

use std::collections::BTreeMap;
use std::sync::Arc;

use steading_model::codec::{Encode as _, record};
use steading_model::limits::{
    AUTHORITY_BYTES_MAX, CERTIFICATE_MS, NAME_BYTES_MAX, TOKEN_MS_MAX, TOKEN_USES_MAX,
};
use steading_model::{Principal, Role, SpiffeId, Timestamp};

use crate::effect::{Effect, Rejection};
use crate::limits::{AUTHORITIES_MAX, DENIED_MAX, MEMBERS_MAX, TOKENS_MAX};
use crate::run::at_most;
use crate::state::{State, Turn};
use crate::table::{Row, Table, Write};

/// Longest name of a token, bytes.
const TOKEN_ID_BYTES_MAX: usize = 32;
/// Longest reason for a denial, bytes; the rest is cut.
const REASON_BYTES_MAX: usize = 200;

/// A coordinator's CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Names the coordinator.
    pub storage_id: String,
    /// The CA's certificate, DER.
    pub certificate: Vec<u8>,
    /// Those above it, the nearest first.
    pub ancestors: Vec<Vec<u8>>,
    pub added: Timestamp,
    /// When the coordinator was asked to leave; zero while it is a member. What the CA
    /// signed before is believed until it is over.
    pub retired: Timestamp,
}

record! { Authority { storage_id, certificate, ancestors, added, retired } }

/// A join token as it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    pub id: String,
    /// SHA-256 of the secret.
    pub secret: [u8; 32],
    /// What who redeems it becomes.
    pub role: Role,
    /// Where an agent must register; empty: anywhere.
    pub pool: String,
    /// The name that it is bound to; empty: any that is free.
    pub name: String,
    pub uses: u32,
    pub ttl_ms: u64,
    pub by: Principal,
}

record! { NewToken { id, secret, role, pool, name, uses, ttl_ms, by } }

/// A join token that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub definition: NewToken,
    pub created: Timestamp,
    pub expires: Timestamp,
    /// The keys that used it, and the names under which they did.
    pub redeemed: BTreeMap<[u8; 32], String>,
}

record! { Token { definition, created, expires, redeemed } }

impl Token {
    /// How many more keys can use it.
    pub fn uses_left(&self) -> u32 {
        self.definition.uses.saturating_sub(self.redeemed.len() as u32)
    }
}

/// Somebody who joined, and has certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolled {
    /// SHA-256 of the public key.
    pub key: [u8; 32],
    /// No certificate of the key lasts longer.
    pub until: Timestamp,
    /// Where an agent must register; empty: anywhere.
    pub pool: String,
}

record! { Enrolled { key, until, pool } }

/// Somebody whom nobody is to believe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    pub reason: String,
    pub by: Principal,
    pub at: Timestamp,
}

record! { Denial { reason, by, at } }

/// `ROLE/ID`: a member of this cluster.
pub fn subject(role: Role, id: &str) -> String {
    format!("{role}/{id}")
}

/// `serial/HEX`: one certificate.
pub fn serial_subject(serial: &str) -> String {
    format!("serial/{serial}")
}

impl Row for Authority {
    type Key = String;
    const TABLE: u8 = 10;
}

impl Row for Token {
    type Key = String;
    const TABLE: u8 = 11;
}

impl Row for Denial {
    type Key = String;
    const TABLE: u8 = 12;
}

impl Row for Enrolled {
    type Key = String;
    const TABLE: u8 = 20;
}

/// The tables of this file.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Identities {
    pub(crate) authorities: Table<Authority>,
    pub(crate) tokens: Table<Token>,
    pub(crate) denied: Table<Denial>,
    pub(crate) members: Table<Enrolled>,
}

impl Identities {
    pub(crate) fn commit(&mut self, writes: &mut Vec<Write>) {
        self.authorities.commit(writes);
        self.tokens.commit(writes);
        self.denied.commit(writes);
        self.members.commit(writes);
    }

    pub(crate) fn undo(&mut self) {
        undo(&mut self.authorities);
        undo(&mut self.tokens);
        undo(&mut self.denied);
        undo(&mut self.members);
    }

    pub(crate) fn encoded(&self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        let rows = self.authorities.encoded().chain(self.tokens.encoded());
        rows.chain(self.denied.encoded()).chain(self.members.encoded())
    }
}

fn undo<R: Row>(table: &mut Table<R>) {
    for (key, row) in table.take_journal() {
        table.restore(&key, row);
    }
}

impl State {
    /// In the order of their coordinators' names, the retired ones with them.
    pub fn authorities(&self) -> impl Iterator<Item = &Authority> {
        self.identities.authorities.iter().map(|(_, row)| row.as_ref())
    }

    pub fn authority(&self, storage_id: &str) -> Option<&Authority> {
        self.identities.authorities.get(&storage_id.to_owned()).map(Arc::as_ref)
    }

    /// Whether what the CA signed is believed at `now`.
    pub fn is_anchor(&self, authority: &Authority, now: Timestamp) -> bool {
        let lasts = authority.retired == Timestamp::default()
            || now < authority.retired.plus_ms(CERTIFICATE_MS);
        lasts && !self.is_denied(&subject(Role::Coordinator, &authority.storage_id))
    }

    pub fn tokens(&self) -> impl Iterator<Item = &Token> {
        self.identities.tokens.iter().map(|(_, row)| row.as_ref())
    }

    pub fn token(&self, id: &str) -> Option<&Token> {
        self.identities.tokens.get(&id.to_owned()).map(Arc::as_ref)
    }

    pub fn member(&self, role: Role, id: &str) -> Option<&Enrolled> {
        self.identities.members.get(&subject(role, id)).map(Arc::as_ref)
    }

    /// See [`subject`] and [`serial_subject`].
    pub fn is_denied(&self, subject: &str) -> bool {
        self.identities.denied.get(&subject.to_owned()).is_some()
    }

    pub fn denials(&self) -> impl Iterator<Item = (&String, &Denial)> {
        self.identities.denied.iter().map(|(subject, row)| (subject, row.as_ref()))
    }

    pub(crate) fn create_token(&mut self, turn: &Turn, token: NewToken) -> Result<(), Rejection> {
        at_most("size of a token's id", token.id.len(), TOKEN_ID_BYTES_MAX)?;
        at_most("size of a pool's name", token.pool.len(), NAME_BYTES_MAX)?;
        at_most("number of uses of a token", token.uses as usize, TOKEN_USES_MAX as usize)?;
        at_most("life of a token", token.ttl_ms as usize, TOKEN_MS_MAX as usize)?;
        if !token.name.is_empty() {
            check_name(token.role, &token.name)?;
        }
        if let Some(known) = self.token(&token.id) {
            // Proposed twice.
            return if known.definition == token { Ok(()) } else { Err(Rejection::TokenDiffers) };
        }
        let over: Vec<String> = self
            .tokens()
            .filter(|known| known.expires <= turn.now)
            .map(|known| known.definition.id.clone())
            .collect();
        for id in over {
            self.identities.tokens.set(&id, None);
        }
        let tokens = self.identities.tokens.len();
        at_most("number of tokens", tokens + 1, TOKENS_MAX)?;
        let row = Token {
            created: turn.now,
            expires: turn.now.plus_ms(token.ttl_ms),
            redeemed: BTreeMap::new(),
            definition: token,
        };
        self.identities.tokens.set(&row.definition.id.clone(), Some(Arc::new(row)));
        Ok(())
    }

    pub(crate) fn revoke_token(&mut self, id: &str) -> Result<(), Rejection> {
        self.token(id).ok_or(Rejection::TokenUnknown)?;
        self.identities.tokens.set(&id.to_owned(), None);
        Ok(())
    }

    pub(crate) fn redeem_token(
        &mut self,
        turn: &mut Turn,
        id: &str,
        secret: [u8; 32],
        key: [u8; 32],
        name: String,
    ) -> Result<(), Rejection> {
        let token = self.token(id).filter(|token| is_same(&token.definition.secret, &secret));
        let mut token = token.ok_or(Rejection::TokenUnknown)?.clone();
        if token.expires <= turn.now {
            return Err(Rejection::TokenExpired);
        }
        let bound = !token.definition.name.is_empty();
        let name = if name.is_empty() { token.definition.name.clone() } else { name };
        let role = token.definition.role;
        check_name(role, &name)?;
        if bound && name != token.definition.name {
            return Err(Rejection::TokenName);
        }
        if self.is_denied(&subject(role, &name)) {
            return Err(Rejection::Denied);
        }
        let known = self.member(role, &name);
        let taken = known.is_some_and(|known| known.key != key && known.until > turn.now);
        match token.redeemed.get(&key) {
            Some(before) if *before != name => return Err(Rejection::TokenName),
            // Somebody with a token that is bound to the name took it since.
            Some(_) if taken => return Err(Rejection::MemberDiffers),
            Some(_) => (),
            None if token.uses_left() == 0 => return Err(Rejection::TokenUsedUp),
            None if taken && !bound => return Err(Rejection::MemberDiffers),
            None => {
                token.redeemed.insert(key, name.clone());
            }
        }
        let member = Enrolled {
            key,
            until: turn.now.plus_ms(CERTIFICATE_MS),
            pool: token.definition.pool.clone(),
        };
        self.put_member(turn, subject(role, &name), member)?;
        self.identities.tokens.set(&token.definition.id.clone(), Some(Arc::new(token)));
        turn.effects.push(Effect::Redeemed { role, name });
        Ok(())
    }

    /// The caller has shown a certificate of the key.
    pub(crate) fn renew_member(
        &mut self,
        turn: &Turn,
        role: Role,
        name: &str,
        key: [u8; 32],
    ) -> Result<(), Rejection> {
        check_name(role, name)?;
        let who = subject(role, name);
        if self.is_denied(&who) {
            return Err(Rejection::Denied);
        }
        let known = self.member(role, name);
        if known.is_some_and(|known| known.key != key) {
            return Err(Rejection::MemberDiffers);
        }
        let pool = known.map(|known| known.pool.clone()).unwrap_or_default();
        let until = turn.now.plus_ms(CERTIFICATE_MS);
        self.put_member(turn, who, Enrolled { key, until, pool })
    }

    /// Where the table is full, forgets the member whose certificate was over first.
    fn put_member(&mut self, turn: &Turn, who: String, member: Enrolled) -> Result<(), Rejection> {
        let members = &mut self.identities.members;
        if members.get(&who).is_none() && members.len() >= MEMBERS_MAX {
            let over = members.iter().filter(|(_, known)| known.until <= turn.now);
            let first = over.min_by_key(|(who, known)| (known.until, *who)).map(|(who, _)| who);
            let Some(first) = first.cloned() else {
                return at_most("number of members", members.len() + 1, MEMBERS_MAX);
            };
            members.set(&first, None);
        }
        members.set(&who, Some(Arc::new(member)));
        Ok(())
    }

    pub(crate) fn add_authority(
        &mut self,
        turn: &Turn,
        storage_id: String,
        certificate: Vec<u8>,
        ancestors: Vec<Vec<u8>>,
    ) -> Result<(), Rejection> {
        check_name(Role::Coordinator, &storage_id)?;
        if self.authority(&storage_id).is_some_and(|known| known.certificate == certificate) {
            return Ok(());
        }
        let retired = Timestamp::default();
        let row = Authority { storage_id, certificate, ancestors, added: turn.now, retired };
        at_most("size of a CA's certificates", row.to_bytes().len(), AUTHORITY_BYTES_MAX)?;
        let authorities = &self.identities.authorities;
        if authorities.get(&row.storage_id).is_none() && authorities.len() >= AUTHORITIES_MAX {
            let retired = self.authorities().filter(|known| known.retired != retired);
            let first = retired.min_by_key(|known| (known.retired, &known.storage_id));
            let Some(first) = first.map(|known| known.storage_id.clone()) else {
                return at_most("number of CAs", authorities.len() + 1, AUTHORITIES_MAX);
            };
            self.identities.authorities.set(&first, None);
        }
        self.identities.authorities.set(&row.storage_id.clone(), Some(Arc::new(row)));
        Ok(())
    }

    /// Its coordinator was asked to leave.
    pub(crate) fn retire_authority(&mut self, turn: &Turn, storage_id: &str) {
        if let Some(known) = self.authority(storage_id)
            && known.retired == Timestamp::default()
        {
            let row = Authority { retired: turn.now, ..known.clone() };
            self.identities.authorities.set(&storage_id.to_owned(), Some(Arc::new(row)));
        }
    }

    pub(crate) fn deny(
        &mut self,
        turn: &Turn,
        subject: String,
        reason: &str,
        by: Principal,
    ) -> Result<(), Rejection> {
        at_most("size of a name", subject.len(), 2 * NAME_BYTES_MAX)?;
        if self.is_denied(&subject) {
            return Ok(());
        }
        at_most("number of denials", self.identities.denied.len() + 1, DENIED_MAX)?;
        let mut end = reason.len().min(REASON_BYTES_MAX);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let row = Denial { reason: reason[..end].to_owned(), by, at: turn.now };
        self.identities.denied.set(&subject, Some(Arc::new(row)));
        Ok(())
    }

    pub(crate) fn allow(&mut self, subject: &str) -> Result<(), Rejection> {
        if !self.is_denied(subject) {
            return Err(Rejection::NotDenied);
        }
        self.identities.denied.set(&subject.to_owned(), None);
        Ok(())
    }
}

fn check_name(role: Role, name: &str) -> Result<(), Rejection> {
    // Which cluster it is makes no difference to the name.
    SpiffeId::new("cluster", role, name).map(|_| ()).map_err(|_| Rejection::MemberName)
}

/// Without telling by its duration how much of it is right.
fn is_same(one: &[u8; 32], other: &[u8; 32]) -> bool {
    one.iter().zip(other).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}
