use serde_json::json;

use super::*;

/// A user whose token was issued then.
pub(in super::super) fn user(id: &str, issued: u64, token_id: Option<&str>) -> User {
    of(json!({ "sub": id, "iat": issued, "jti": token_id })).unwrap()
}

fn of(claims: Value) -> Result<User, TokenError> {
    let Value::Object(claims) = claims else {
        panic!("{claims}")
    };
    let verified = Verified {
        claims,
        expires: 100,
    };
    User::new(verified, &ClaimSettings::default())
}

#[test]
fn claims_become_a_user() {
    let user = of(json!({
        "sub": 7, "rooms": ["a", "b"], "join": "room:*", "send": ["user:{sub}"], "iat": 3.5, "jti": "x",
    }))
    .unwrap();
    assert_eq!((&*user.id, user.expires, user.issued), ("7", 100, 3));
    assert_eq!(user.rooms, ["a", "b"]);
    assert_eq!(user.token_id.as_deref(), Some("x"));
    let none = RoomPolicy::default();
    assert!(user.may(&none, Action::Join, "room:1"));
    assert!(!user.may(&none, Action::Send, "room:1"));
    assert!(user.may(&none, Action::Send, "user:7"));
    assert!(!user.may(&none, Action::Presence, "room:1"));
}

#[test]
fn a_claim_of_the_wrong_form_is_named() {
    for (claims, name) in [
        (json!({}), "sub"),
        (json!({ "sub": "" }), "sub"),
        (json!({ "sub": ["a"] }), "sub"),
        (json!({ "sub": "a".repeat(201) }), "sub"),
        (json!({ "sub": "a", "rooms": [1] }), "rooms"),
        (json!({ "sub": "a", "rooms": vec!["a"; 101] }), "rooms"),
        (json!({ "sub": "a", "join": ["a{"] }), "join"),
        (json!({ "sub": "a", "send": {} }), "send"),
    ] {
        let error = of(claims.clone()).unwrap_err();
        assert_eq!(error, TokenError::Claim(name.to_owned()), "{claims}");
    }
}
