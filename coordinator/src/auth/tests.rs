use steading_model::Role;

use super::*;

#[test]
fn an_agent_speaks_for_itself_only() {
    let caller = |role, id: &str| Caller { role, id: id.to_owned(), certified: None };
    assert!(caller(Role::Agent, "a").speaks_for("a").is_ok());
    let refused = caller(Role::Agent, "a").speaks_for("b").unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    assert!(Caller::local().speaks_for("b").is_ok());
}

#[test]
fn no_clients_name_is_that_of_another_role() {
    for (role, id, want) in [
        (Role::Client, "ada", "ada"),
        (Role::Admin, "ada", "admin:ada"),
        (Role::Agent, "ada", "agent:ada"),
        (Role::Admin, "local", "local"),
    ] {
        let mut request = Request::new(());
        request.extensions_mut().insert(Caller { role, id: id.to_owned(), certified: None });
        assert_eq!(principal(&request).unwrap().as_str(), want);
    }
    assert!(is_reserved("local"));
    assert_eq!(principal(&Request::new(())).unwrap_err().code(), tonic::Code::Unauthenticated);
}

#[test]
fn who_asked_has_one_spelling() {
    assert_eq!(Caller::read("client/ada").unwrap().to_string(), "client/ada");
    assert_eq!(Caller::read("admin/local"), Some(Caller::local()));
    for text in ["", "ada", "root/ada", "client/", "client/a/b", "client/a b"] {
        assert_eq!(Caller::read(text), None, "{text}");
    }
}
