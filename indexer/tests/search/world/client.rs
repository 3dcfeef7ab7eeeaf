//! What a client does.

use fechatter_core::token::Claims;
use fechatter_core::user::Role;
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{User, World};

impl World {
    pub fn token(&self, user: User) -> String {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let claims = Claims {
            iss: "fechatter".to_owned(),
            aud: "fechatter".to_owned(),
            sub: user.id.to_string(),
            ws: user.workspace.into(),
            role: Role::Member,
            sid: Uuid::now_v7(),
            jti: Uuid::now_v7(),
            iat: now,
            exp: now + 900,
        };
        let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::EdDSA);
        header.kid = Some("k1".to_owned());
        let key = jsonwebtoken::EncodingKey::from_ed_der(&self.signing);
        jsonwebtoken::encode(&header, &claims, &key).expect("a token")
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Status and body of a search.
    pub async fn ask(&self, user: User, params: &[(&str, &str)]) -> (u16, Value) {
        let answer = self
            .http
            .get(self.url("/api/search/messages"))
            .query(params)
            .bearer_auth(self.token(user))
            .send()
            .await
            .expect("an answer");
        let (status, body) = (answer.status().as_u16(), answer.json().await.expect("JSON"));
        dev::documented::assert_documented("GET", "/api/search/messages", status, &body);
        (status, body)
    }

    /// The ids found, sorted.
    pub async fn find(&self, user: User, q: &str) -> Vec<i64> {
        let (status, body) = self.ask(user, &[("q", q)]).await;
        assert_eq!(status, 200, "{body}");
        let mut ids: Vec<i64> = body["hits"]
            .as_array()
            .expect("hits")
            .iter()
            .map(|hit| hit["message"]["id"].as_i64().expect("an id"))
            .collect();
        ids.sort_unstable();
        ids
    }

    /// Waits until a search finds exactly this.
    pub async fn finds(&self, user: User, q: &str, expected: &[i64]) {
        self.eventually(&format!("{q:?} to find {expected:?}"), async || {
            self.find(user, q).await == expected
        })
        .await;
    }
}
