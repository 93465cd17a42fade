//! Token authentication as Ray 2.60 does it, on both sides of a call.
//!
//! With `RAY_AUTH_MODE=token` every call carries `authorization: Bearer <token>`. The token comes from `RAY_AUTH_TOKEN`,
//! else from the first line of the file that `RAY_AUTH_TOKEN_PATH` names, else from the first line of
//! `~/.ray/auth_token`; white space around it is dropped. A server compares the whole header value with the expected
//! one, takes the first header where there are several, and answers anything else with `UNAUTHENTICATED`. Calls to
//! `grpc.health.v1.Health` and to methods that don't exist are answered without a look at the token.
//! (All of this was observed on the executables of the 2.60.0 wheel.)

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use http::header::{HeaderMap, HeaderName, HeaderValue, AUTHORIZATION};
use tonic::{Code, Status};

use super::tls::is_open_to_others;

/// Message of the status that stock servers of Ray 2.60 return for a missing or wrong token.
pub const INVALID_TOKEN_MESSAGE: &str = "InvalidAuthToken: Authentication token is missing or incorrect";

/// Metadata key under which a client names its cluster, as 56 hexadecimal digits. The GCS refuses calls that name
/// another cluster and accepts calls that name none; a raylet of Ray 2.60 doesn't look at it.
pub const CLUSTER_ID_KEY: HeaderName = HeaderName::from_static("ray_cluster_id");

const BEARER: &str = "Bearer ";
const MODE_VAR: &str = "RAY_AUTH_MODE";
const TOKEN_VAR: &str = "RAY_AUTH_TOKEN";
const TOKEN_PATH_VAR: &str = "RAY_AUTH_TOKEN_PATH";
const KUBERNETES_VAR: &str = "RAY_ENABLE_K8S_TOKEN_AUTH";

/// Why the authentication settings can't be used. None of the texts holds a token.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// `RAY_AUTH_MODE` is neither of the modes that Ray 2.60 knows.
    #[error("RAY_AUTH_MODE is `{0}`, expected `token` or `disabled`")]
    UnknownMode(String),
    /// Tokens that a Kubernetes API server checks.
    #[error(
        "RAY_ENABLE_K8S_TOKEN_AUTH is set, but this node checks tokens only against its own copy: \
         unset it and give every node the same token through RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
    )]
    KubernetesUnsupported,
    /// The file that `RAY_AUTH_TOKEN_PATH` names is missing or empty.
    #[error("RAY_AUTH_TOKEN_PATH is set, but {path} cannot be read or its first line is empty: put the token there")]
    TokenFile {
        /// The file named.
        path: PathBuf,
    },
    /// A file that a setting of ours names is missing or empty.
    #[error("{path} (token_file) cannot be read or its first line is empty: put the token there")]
    NoTokenIn {
        /// The file named.
        path: PathBuf,
    },
    /// No source has a token.
    #[error(
        "token authentication is enabled but no token was found: create ~/.ray/auth_token, \
         or set RAY_AUTH_TOKEN_PATH to a file with the token, or set RAY_AUTH_TOKEN"
    )]
    NoToken,
    /// The token can't travel in a header.
    #[error("the authentication token holds bytes that a header cannot carry: use printable ASCII")]
    NotAHeader,
}

/// A token, ready to be sent and to be compared. Never printed.
#[derive(Clone)]
pub struct Token {
    header: HeaderValue,
}

impl Token {
    /// Takes the bare token, without `Bearer `.
    ///
    /// # Errors
    /// [`AuthError::NoToken`] when it is blank, [`AuthError::NotAHeader`] when it can't be a header's value.
    pub fn new(secret: &str) -> Result<Self, AuthError> {
        let secret = trim(secret);
        if secret.is_empty() {
            return Err(AuthError::NoToken);
        }
        let mut header = HeaderValue::from_str(&format!("{BEARER}{secret}")).map_err(|_| AuthError::NotAHeader)?;
        header.set_sensitive(true);
        Ok(Self { header })
    }

    /// The value for an `authorization` header, marked sensitive so that it is neither logged nor compressed.
    pub fn header_value(&self) -> HeaderValue {
        self.header.clone()
    }

    /// The bare token, as a key for proofs of knowing it.
    pub fn secret(&self) -> &[u8] {
        let header = self.header.as_bytes();
        header.strip_prefix(BEARER.as_bytes()).unwrap_or(header)
    }

    /// Compares in a time that depends on the length given and on nothing else.
    fn matches(&self, given: &[u8]) -> bool {
        let expected = self.header.as_bytes();
        if expected.len() != given.len() {
            return false;
        }
        let difference = expected.iter().zip(given).fold(0u8, |seen, (a, b)| std::hint::black_box(seen | (a ^ b)));
        difference == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(redacted)")
    }
}

/// How this process authenticates: with a token in both directions, or not at all.
#[derive(Clone, Debug, Default)]
pub struct Auth {
    token: Option<Token>,
}

impl Auth {
    /// No authentication: `RAY_AUTH_MODE=disabled`.
    pub fn disabled() -> Self {
        Self { token: None }
    }

    /// Authentication with this token, in both directions.
    pub fn with_token(token: Token) -> Self {
        Self { token: Some(token) }
    }

    /// Reads the settings of this process.
    ///
    /// # Errors
    /// See [`AuthError`]; a node that gets one can't talk to its cluster and should say so and stop.
    pub fn from_env() -> Result<Self, AuthError> {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// Like [`Self::from_env`] with the environment given as a function, so that it can be tested.
    ///
    /// # Errors
    /// As [`Self::from_env`].
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, AuthError> {
        let mode = var(MODE_VAR).unwrap_or_default();
        match mode.to_ascii_lowercase().as_str() {
            "token" => {}
            "disabled" | "" => return Ok(Self::disabled()),
            _ => return Err(AuthError::UnknownMode(mode)),
        }
        if var(KUBERNETES_VAR).is_some_and(|v| v == "1" || v.eq_ignore_ascii_case("true")) {
            return Err(AuthError::KubernetesUnsupported);
        }
        if let Some(secret) = var(TOKEN_VAR).filter(|v| !v.is_empty()) {
            return Token::new(&secret).map(Self::with_token);
        }
        if let Some(path) = var(TOKEN_PATH_VAR).filter(|v| !v.is_empty()) {
            let path = PathBuf::from(path);
            return match first_line(&path) {
                Some(secret) => Token::new(&secret).map(Self::with_token),
                None => Err(AuthError::TokenFile { path }),
            };
        }
        let home = var("HOME").filter(|v| !v.is_empty());
        let path = PathBuf::from(home.as_deref().unwrap_or(".")).join(".ray/auth_token");
        let secret = first_line(&path).ok_or(AuthError::NoToken)?;
        Token::new(&secret).map(Self::with_token)
    }

    /// As [`Self::from_env`], whether `RAY_AUTH_MODE` asks for a token or not, where one of Ray's variables has one: for native nodes.
    ///
    /// # Errors
    /// As [`Self::from_env`].
    pub fn from_env_if_any() -> Result<Self, AuthError> {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let has_token = [TOKEN_VAR, TOKEN_PATH_VAR].into_iter().any(|name| var(name).is_some());
        Self::from_vars(|name| match name {
            MODE_VAR if has_token => Some("token".to_owned()),
            name => var(name),
        })
    }

    /// Authentication with the token in the first line of a file.
    ///
    /// # Errors
    /// [`AuthError::NoTokenIn`], [`AuthError::NotAHeader`].
    pub fn from_file(path: &Path) -> Result<Self, AuthError> {
        let secret = first_line(path).ok_or_else(|| AuthError::NoTokenIn { path: path.to_owned() })?;
        Token::new(&secret).map(Self::with_token)
    }

    /// The token, where one is used.
    pub fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    /// Decides whether a call with these headers may be served.
    ///
    /// # Errors
    /// The status that stock servers return: `UNAUTHENTICATED` with [`INVALID_TOKEN_MESSAGE`].
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Status> {
        self.check_value(headers.get(AUTHORIZATION).map(HeaderValue::as_bytes))
    }

    /// As [`Self::check`], of the value of a call's first `authorization`.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_value(&self, authorization: Option<&[u8]>) -> Result<(), Status> {
        let Some(token) = &self.token else {
            return Ok(());
        };
        match authorization {
            Some(given) if token.matches(given) => Ok(()),
            _ => Err(Status::new(Code::Unauthenticated, INVALID_TOKEN_MESSAGE)),
        }
    }
}

/// What Ray calls white space around a token.
fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t', '\n', '\r', '\x0c', '\x0b'])
}

fn first_line(path: &Path) -> Option<String> {
    // Ray takes such a file, and secrets that are mounted into containers are often like this: so it is said, not refused.
    if is_open_to_others(path) {
        tracing::warn!(path = %path.display(), "the authentication token can be read by other users: chmod 600 its file");
    }
    let text = fs::read_to_string(path).ok()?;
    let line = trim(text.lines().next()?);
    (!line.is_empty()).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |name| {
            let found = pairs.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        }
    }

    fn secret(auth: &Auth) -> String {
        let value = auth.token().expect("a token").header_value();
        value.to_str().expect("ascii").to_owned()
    }

    #[test]
    fn sources_are_tried_in_rays_order() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let home = dir.path().to_str().expect("utf-8 path");
        fs::create_dir(dir.path().join(".ray")).expect("mkdir");
        fs::write(dir.path().join(".ray/auth_token"), " from-home \nsecond line\n").expect("write");
        let named = dir.path().join("named");
        fs::write(&named, "from-file\n").expect("write");
        let named = named.to_str().expect("utf-8 path");
        let all = [
            ("HOME", home),
            ("RAY_AUTH_MODE", "Token"),
            ("RAY_AUTH_TOKEN_PATH", named),
            ("RAY_AUTH_TOKEN", "\tfrom-env\n"),
        ];
        let of = |count: usize| secret(&Auth::from_vars(vars(&all[..count])).expect("token"));
        assert_eq!(of(4), "Bearer from-env");
        assert_eq!(of(3), "Bearer from-file");
        assert_eq!(of(2), "Bearer from-home");
        let off = Auth::from_vars(vars(&all[..1])).expect("mode unset");
        assert!(off.token().is_none());
    }

    #[test]
    fn bad_settings_are_named() {
        let missing = [("RAY_AUTH_MODE", "token"), ("RAY_AUTH_TOKEN_PATH", "/nonexistent/token")];
        assert!(matches!(Auth::from_vars(vars(&missing)), Err(AuthError::TokenFile { .. })));
        let none = [("RAY_AUTH_MODE", "token"), ("HOME", "/nonexistent")];
        assert!(matches!(Auth::from_vars(vars(&none)), Err(AuthError::NoToken)));
        let blank = [("RAY_AUTH_MODE", "token"), ("RAY_AUTH_TOKEN", "  ")];
        assert!(matches!(Auth::from_vars(vars(&blank)), Err(AuthError::NoToken)));
        let odd = [("RAY_AUTH_MODE", "kerberos")];
        assert!(matches!(Auth::from_vars(vars(&odd)), Err(AuthError::UnknownMode(mode)) if mode == "kerberos"));
        let binary = [("RAY_AUTH_MODE", "token"), ("RAY_AUTH_TOKEN", "a\u{1}b")];
        assert!(matches!(Auth::from_vars(vars(&binary)), Err(AuthError::NotAHeader)));
    }

    #[test]
    fn only_the_exact_first_header_passes() {
        let auth = Auth::with_token(Token::new("s3cret").expect("token"));
        let headers = |values: &[&'static str]| {
            let mut map = HeaderMap::new();
            for value in values {
                map.append(AUTHORIZATION, HeaderValue::from_static(value));
            }
            map
        };
        assert!(auth.check(&headers(&["Bearer s3cret"])).is_ok());
        assert!(auth.check(&headers(&["Bearer s3cret", "Bearer other"])).is_ok());
        for refused in [
            &[][..],
            &["s3cret"],
            &["bearer s3cret"],
            &["Bearer s3creT"],
            &["Bearer  s3cret"],
            &["Bearer s3cre"],
            &["Bearer other", "Bearer s3cret"],
        ] {
            let status = auth.check(&headers(refused)).expect_err("must be refused");
            assert_eq!(status.code(), Code::Unauthenticated);
            assert_eq!(status.message(), INVALID_TOKEN_MESSAGE);
        }
        assert!(Auth::disabled().check(&headers(&[])).is_ok());
    }

    #[test]
    fn a_token_is_never_printed() {
        let auth = Auth::with_token(Token::new("s3cret").expect("token"));
        let header = auth.token().expect("a token").header_value();
        assert!(!format!("{auth:?} {header:?}").contains("s3cret"));
    }
}
