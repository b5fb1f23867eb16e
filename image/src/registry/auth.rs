//! Authentication: `Basic`, and the `Bearer` tokens of docker's token server.

use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{StatusCode, Url};
use serde::Deserialize;

use super::credentials::Credentials;
use super::{Client, MAX_REPLY_BYTES, RegistryError};

/// Longest challenge that is parsed.
const MAX_CHALLENGE_BYTES: usize = 8 << 10;

/// What a registry asks for in `WWW-Authenticate`.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

#[derive(Deserialize)]
struct TokenReply {
    token: Option<String>,
    access_token: Option<String>,
}

impl Client {
    /// Answers a 401: gets a token or prepares basic authentication for the requests that follow.
    pub(super) async fn authenticate(&self, headers: impl Iterator<Item = &HeaderValue>) -> Result<(), RegistryError> {
        let challenges: Vec<Challenge> =
            headers.filter_map(|value| value.to_str().ok()).filter_map(parse_challenge).collect();
        let bearer = challenges.iter().find(|challenge| **challenge != Challenge::Basic);
        let header = match bearer.or(challenges.first()) {
            None => return Err(self.unusable("no Basic or Bearer challenge")),
            Some(Challenge::Basic) => self.basic().ok_or_else(|| self.denied())?,
            Some(Challenge::Bearer { realm, service, scope }) => {
                let token = self.fetch_token(realm, service.as_deref(), scope.as_deref()).await?;
                format!("Bearer {token}")
            }
        };
        let mut header = HeaderValue::from_str(&header).map_err(|_| self.unusable("the token is no valid header"))?;
        header.set_sensitive(true);
        *self.token.lock().await = Some(header);
        Ok(())
    }

    fn basic(&self) -> Option<String> {
        use base64::Engine as _;
        let Credentials::Password { user, password } = &self.credentials else { return None };
        let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        Some(format!("Basic {encoded}"))
    }

    async fn fetch_token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<String, RegistryError> {
        let mut url = Url::parse(realm).map_err(|_| self.unusable("the realm is no URL"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(self.unusable("the realm is no web address"));
        }
        if self.base.scheme() == "https" && url.scheme() != "https" {
            return Err(self.unusable("the realm is not encrypted but the registry is"));
        }
        let pull = format!("repository:{}:pull", self.repository);
        let mut fields = vec![("scope", scope.unwrap_or(&pull))];
        fields.extend(service.map(|service| ("service", service)));
        let request = if let Credentials::IdentityToken(token) = &self.credentials {
            fields.extend([("grant_type", "refresh_token"), ("client_id", "hull"), ("refresh_token", token)]);
            let body = encode_form(&url, &fields);
            self.http.post(url).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(body)
        } else {
            url.query_pairs_mut().extend_pairs(&fields);
            let request = self.http.get(url);
            match &self.credentials {
                Credentials::Password { user, password } => request.basic_auth(user, Some(password)),
                _ => request,
            }
        };
        let failed = |source| RegistryError::Unreachable { host: self.host.clone(), source };
        let response = request.send().await.map_err(failed)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.denied()),
            StatusCode::TOO_MANY_REQUESTS => return Err(RegistryError::TooManyRequests(self.host.clone())),
            _ => return Err(self.unusable("the token server fails")),
        }
        let body = self.body(response, MAX_REPLY_BYTES, "token").await?;
        let reply: TokenReply = serde_json::from_slice(&body).map_err(|_| self.unusable("the token is malformed"))?;
        let token = reply.token.filter(|token| !token.is_empty()).or(reply.access_token);
        token.ok_or_else(|| self.unusable("the token server sent no token"))
    }

    fn unusable(&self, reason: &'static str) -> RegistryError {
        RegistryError::Challenge { host: self.host.clone(), reason }
    }
}

fn encode_form(url: &Url, fields: &[(&str, &str)]) -> String {
    let mut form = url.clone();
    form.set_query(None);
    form.query_pairs_mut().extend_pairs(fields);
    form.query().unwrap_or_default().to_owned()
}

/// Parses one challenge: `Bearer realm="...",service="...",scope="..."` or `Basic realm="..."`.
fn parse_challenge(text: &str) -> Option<Challenge> {
    if text.len() > MAX_CHALLENGE_BYTES {
        return None;
    }
    let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = parameter_value(after)?;
        match key.trim_matches([' ', ',']).to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value),
            "service" => service = Some(value),
            "scope" => scope = Some(value),
            _ => {}
        }
        rest = after;
    }
    Some(Challenge::Bearer { realm: realm?, service, scope })
}

/// A token or a quoted string, and what follows it.
fn parameter_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_once(',').unwrap_or((text, ""));
        return Some((value.trim().to_owned(), rest));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, quoted.get(index + 1..)?)),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges_are_parsed() {
        let bearer =
            r#"Bearer realm="https://auth.example/token",service="reg,istry",scope="repository:a/b:pull,push""#;
        assert_eq!(
            parse_challenge(bearer),
            Some(Challenge::Bearer {
                realm: "https://auth.example/token".into(),
                service: Some("reg,istry".into()),
                scope: Some("repository:a/b:pull,push".into())
            })
        );
        assert_eq!(parse_challenge("basic realm=\"x\""), Some(Challenge::Basic));
        let unquoted = Challenge::Bearer { realm: "http://x".into(), service: None, scope: None };
        assert_eq!(parse_challenge("bearer realm=http://x , extra=1"), Some(unquoted));
        for bad in ["", "Negotiate", "Bearer", "Bearer service=\"x\"", "Bearer realm=\"open"] {
            assert_eq!(parse_challenge(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn random_challenges_never_panic(text in r#"(Bearer |Basic )?[a-z=",\\ é]{0,60}"#) {
            let _ = parse_challenge(&text);
        }
    }
}
