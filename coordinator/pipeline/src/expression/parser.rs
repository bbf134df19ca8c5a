//! From tokens to a tree. Binds from loosest to tightest: `||`, `&&`, `== !=`,
//! `< <= > >=`, `!`, then index, property and call.

use super::error::{ErrorKind, ExpressionError};
use super::function::{Function, Functions};
use super::lexer::{Symbol, Token, TokenKind, lex};
use super::value::Value;

/// Deepest tree, in nodes, and deepest nesting, in brackets. What GitHub accepts.
pub(super) const DEPTH_MAX: usize = 50;

/// Most arguments of one call. What GitHub accepts.
pub(super) const ARGUMENTS_MAX: usize = 255;

#[derive(Clone, Debug)]
pub(crate) enum Expr {
    Literal(Value),
    Context {
        name: String,
        position: usize,
    },
    /// `of[index]`, and `of.name`, whose index is a string.
    Index {
        of: Box<Expr>,
        index: Box<Expr>,
    },
    /// `of[*]` and `of.*`.
    Filter {
        of: Box<Expr>,
    },
    Not(Box<Expr>),
    Compare {
        comparison: Comparison,
        left: Box<Expr>,
        right: Box<Expr>,
    },
    All(Vec<Expr>),
    Any(Vec<Expr>),
    Call {
        function: Function,
        arguments: Vec<Expr>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Which names an expression may use.
pub(crate) struct Scope<'a> {
    pub(crate) is_context: &'a dyn Fn(&str) -> bool,
    pub(crate) functions: Functions,
}

/// Parses an expression; `None` for one without any token.
pub(crate) fn parse(expression: &str, scope: &Scope<'_>) -> Result<Option<Expr>, ExpressionError> {
    let parse = || {
        let tokens = lex(expression)?;
        if tokens.is_empty() {
            return Ok(None);
        }
        let mut parser = Parser { tokens: &tokens, at: 0, depth: 0, scope };
        let (tree, _) = parser.expression()?;
        match parser.tokens.get(parser.at) {
            None => Ok(Some(tree)),
            Some(token) => Err(error("Unexpected symbol", token)),
        }
    };
    parse().map_err(|error: ExpressionError| error.within(expression, 0))
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    /// Of what is being parsed, so that no input exhausts the stack.
    depth: usize,
    scope: &'a Scope<'a>,
}

/// A tree and its depth.
type Parsed = Result<(Expr, usize), ExpressionError>;

impl Parser<'_> {
    fn expression(&mut self) -> Parsed {
        self.nested(|parser| {
            let any = parser.chain(Symbol::Or, Self::all)?;
            Ok(any)
        })
    }

    fn all(&mut self) -> Parsed {
        self.chain(Symbol::And, Self::equality)
    }

    /// Operands joined by `&&` or `||`: one node, however many.
    fn chain(&mut self, symbol: Symbol, operand: fn(&mut Self) -> Parsed) -> Parsed {
        let (first, mut depth) = operand(self)?;
        if self.peek_symbol() != Some(symbol) {
            return Ok((first, depth));
        }
        let mut operands = vec![first];
        while self.take(symbol) {
            let (next, its_depth) = operand(self)?;
            depth = depth.max(its_depth);
            operands.push(next);
        }
        let tree = if symbol == Symbol::And { Expr::All(operands) } else { Expr::Any(operands) };
        self.deeper(tree, depth)
    }

    fn equality(&mut self) -> Parsed {
        self.comparisons(Self::order, |symbol| match symbol {
            Symbol::Equal => Some(Comparison::Equal),
            Symbol::NotEqual => Some(Comparison::NotEqual),
            _ => None,
        })
    }

    fn order(&mut self) -> Parsed {
        self.comparisons(Self::unary, |symbol| match symbol {
            Symbol::Less => Some(Comparison::Less),
            Symbol::LessOrEqual => Some(Comparison::LessOrEqual),
            Symbol::Greater => Some(Comparison::Greater),
            Symbol::GreaterOrEqual => Some(Comparison::GreaterOrEqual),
            _ => None,
        })
    }

    fn comparisons(
        &mut self,
        operand: fn(&mut Self) -> Parsed,
        which: fn(Symbol) -> Option<Comparison>,
    ) -> Parsed {
        let (mut tree, mut depth) = operand(self)?;
        while let Some(comparison) = self.peek_symbol().and_then(which) {
            self.at += 1;
            let (right, right_depth) = operand(self)?;
            let (left, right) = (Box::new(tree), Box::new(right));
            (tree, depth) =
                self.deeper(Expr::Compare { comparison, left, right }, depth.max(right_depth))?;
        }
        Ok((tree, depth))
    }

    fn unary(&mut self) -> Parsed {
        if !self.take(Symbol::Not) {
            return self.access();
        }
        let (tree, depth) = self.nested(Self::unary)?;
        self.deeper(Expr::Not(Box::new(tree)), depth)
    }

    /// A primary, and the properties, indexes and filters behind it.
    fn access(&mut self) -> Parsed {
        let (mut tree, mut depth, indexable) = self.primary()?;
        if !indexable {
            return Ok((tree, depth));
        }
        loop {
            let of = if self.take(Symbol::Dot) {
                self.property(tree)?
            } else if self.take(Symbol::OpenIndex) {
                let (indexed, index_depth) = self.index(tree)?;
                depth = depth.max(index_depth);
                indexed
            } else {
                return Ok((tree, depth));
            };
            (tree, depth) = self.deeper(of, depth)?;
        }
    }

    fn property(&mut self, of: Expr) -> Result<Expr, ExpressionError> {
        let of = Box::new(of);
        if self.take(Symbol::Star) {
            return Ok(Expr::Filter { of });
        }
        match self.tokens.get(self.at) {
            Some(Token { kind: TokenKind::Word, text, .. }) => {
                self.at += 1;
                let index = Box::new(Expr::Literal(Value::string(text.as_str())));
                Ok(Expr::Index { of, index })
            }
            Some(token) => Err(error("Unexpected symbol", token)),
            None => Err(self.unexpected_end()),
        }
    }

    fn index(&mut self, of: Expr) -> Parsed {
        let of = Box::new(of);
        let (tree, depth) = if self.take(Symbol::Star) {
            (Expr::Filter { of }, 0)
        } else {
            let (index, depth) = self.expression()?;
            (Expr::Index { of, index: Box::new(index) }, depth)
        };
        self.expect(Symbol::CloseIndex)?;
        Ok((tree, depth))
    }

    /// The tree, its depth, and whether it can be indexed.
    fn primary(&mut self) -> Result<(Expr, usize, bool), ExpressionError> {
        let Some(token) = self.tokens.get(self.at) else {
            return Err(self.unexpected_end());
        };
        self.at += 1;
        let literal = match &token.kind {
            TokenKind::Null => Value::Null,
            TokenKind::Bool(bool) => Value::Bool(*bool),
            TokenKind::Number(number) => Value::Number(*number),
            TokenKind::String(string) => Value::string(string.as_str()),
            TokenKind::Word if self.take(Symbol::OpenGroup) => {
                let (call, depth) = self.call(token)?;
                return Ok((call, depth, true));
            }
            TokenKind::Word => {
                if !(self.scope.is_context)(&token.text) {
                    return Err(error("Unrecognized named-value", token));
                }
                let (name, position) = (token.text.clone(), token.position);
                return Ok((Expr::Context { name, position }, 1, true));
            }
            TokenKind::Symbol(Symbol::OpenGroup) => {
                let (tree, depth) = self.expression()?;
                self.expect(Symbol::CloseGroup)?;
                return Ok((tree, depth, true));
            }
            TokenKind::Symbol(_) => return Err(error("Unexpected symbol", token)),
        };
        Ok((Expr::Literal(literal), 1, false))
    }

    fn call(&mut self, name: &Token) -> Parsed {
        let (mut arguments, mut depth) = (Vec::new(), 0);
        if !self.take(Symbol::CloseGroup) {
            loop {
                let (argument, its_depth) = self.expression()?;
                depth = depth.max(its_depth);
                arguments.push(argument);
                if !self.take(Symbol::Comma) {
                    break;
                }
            }
            self.expect(Symbol::CloseGroup)?;
        }
        let Some((function, arity)) = self.scope.functions.find(&name.text) else {
            return Err(error("Unrecognized function", name));
        };
        if arguments.len() < *arity.start() {
            return Err(error("Too few parameters supplied", name));
        }
        if arguments.len() > *arity.end() {
            return Err(error("Too many parameters supplied", name));
        }
        if function == Function::Case && arguments.len() % 2 == 0 {
            let what = "Even number of parameters supplied, requires an odd number of parameters";
            return Err(error(what, name));
        }
        self.deeper(Expr::Call { function, arguments }, depth)
    }

    /// Parses one level further down.
    fn nested(&mut self, parse: impl FnOnce(&mut Self) -> Parsed) -> Parsed {
        if self.depth == DEPTH_MAX {
            return Err(self.too_deep());
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    /// A node over children of this depth.
    fn deeper(&self, tree: Expr, depth: usize) -> Parsed {
        if depth >= DEPTH_MAX { Err(self.too_deep()) } else { Ok((tree, depth + 1)) }
    }

    fn peek_symbol(&self) -> Option<Symbol> {
        match self.tokens.get(self.at)?.kind {
            TokenKind::Symbol(symbol) => Some(symbol),
            _ => None,
        }
    }

    fn take(&mut self, symbol: Symbol) -> bool {
        let found = self.peek_symbol() == Some(symbol);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, symbol: Symbol) -> Result<(), ExpressionError> {
        if self.take(symbol) {
            return Ok(());
        }
        match self.tokens.get(self.at) {
            Some(token) => Err(error("Unexpected symbol", token)),
            None => Err(self.unexpected_end()),
        }
    }

    /// Names the last token, after which something is missing.
    fn unexpected_end(&self) -> ExpressionError {
        match self.tokens.last() {
            Some(token) => error("Unexpected end of expression", token),
            None => ExpressionError::new(ErrorKind::Parsing, 0, "Unexpected end of expression"),
        }
    }

    fn too_deep(&self) -> ExpressionError {
        let position = self.tokens.get(self.at).map_or(0, |token| token.position);
        let message = format!("Exceeded max expression depth {DEPTH_MAX}");
        ExpressionError::new(ErrorKind::Parsing, position, message)
    }
}

fn error(what: &str, token: &Token) -> ExpressionError {
    let message = format!("{what}: '{}'", token.text);
    ExpressionError::new(ErrorKind::Parsing, token.position, message)
}

impl Expr {
    /// Visits every node, parents first.
    pub(crate) fn visit(&self, visitor: &mut dyn FnMut(&Self)) {
        visitor(self);
        match self {
            Self::Literal(_) | Self::Context { .. } => (),
            Self::Index { of, index } => {
                of.visit(visitor);
                index.visit(visitor);
            }
            Self::Filter { of } | Self::Not(of) => of.visit(visitor),
            Self::Compare { left, right, .. } => {
                left.visit(visitor);
                right.visit(visitor);
            }
            Self::All(nodes) | Self::Any(nodes) | Self::Call { arguments: nodes, .. } => {
                nodes.iter().for_each(|node| node.visit(visitor));
            }
        }
    }

    /// Whether it asks for the status anywhere. In a string does not count.
    pub(crate) fn asks_for_status(&self) -> bool {
        let mut found = false;
        self.visit(&mut |node| {
            found |= matches!(node, Self::Call { function, .. } if function.is_status());
        });
        found
    }
}
