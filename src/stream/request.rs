//! The one HTTP request of a connection: what it asks for, and the answer. No I/O.

use std::fmt::Write as _;

use super::token::Token;
use super::websocket::accept_key;
use crate::limits::STREAM_HEAD_FIELDS_MAX;

/// What a URL is for: its first part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// `/exec/`
    Exec,
    /// `/attach/`
    Attach,
    /// `/port-forward/`
    PortForward,
}

impl Purpose {
    /// As it stands in a URL.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "port-forward",
        }
    }
}

/// What both sides will speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A remote command over WebSocket.
    WebSocket(CommandVersion),
    /// A remote command over SPDY.
    Spdy(CommandVersion),
    /// Port-forward over SPDY.
    Forward,
    /// Port-forward over SPDY in the binary messages of a WebSocket.
    TunnelledForward,
}

/// Versions of Kubernetes' remote command protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CommandVersion {
    /// Input can be ended; outcomes are plain text.
    V2,
    /// And terminals can be resized.
    V3,
    /// And outcomes are JSON, with the exit code.
    V4,
    /// And over WebSocket, too, input can be ended.
    V5,
}

impl CommandVersion {
    fn name(self) -> &'static str {
        match self {
            Self::V2 => "v2.channel.k8s.io",
            Self::V3 => "v3.channel.k8s.io",
            Self::V4 => "v4.channel.k8s.io",
            Self::V5 => "v5.channel.k8s.io",
        }
    }

    /// Resizes can be sent.
    #[must_use]
    pub fn has_resize(self) -> bool {
        self >= Self::V3
    }

    /// Outcomes are JSON.
    #[must_use]
    pub fn has_status(self) -> bool {
        self >= Self::V4
    }
}

const FORWARD: &str = "portforward.k8s.io";
const TUNNELLED_FORWARD: &str = "SPDY/3.1+portforward.k8s.io";

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::WebSocket(version) | Self::Spdy(version) => version.name(),
            Self::Forward => FORWARD,
            Self::TunnelledForward => TUNNELLED_FORWARD,
        }
    }

    /// What we speak for `purpose` over each transport. Over WebSocket only what
    /// carries an exit code; over SPDY, v5 would be the same as v4.
    fn all(purpose: Purpose, transport: &Transport) -> &'static [Self] {
        use CommandVersion::{V2, V3, V4, V5};
        match (purpose, transport) {
            (Purpose::PortForward, Transport::WebSocket { .. }) => &[Self::TunnelledForward],
            (Purpose::PortForward, Transport::Spdy) => &[Self::Forward],
            (_, Transport::WebSocket { .. }) => &[Self::WebSocket(V5), Self::WebSocket(V4)],
            (_, Transport::Spdy) => &[Self::Spdy(V4), Self::Spdy(V3), Self::Spdy(V2)],
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Transport {
    WebSocket { key: String },
    Spdy,
}

/// A request that can be served, if its token is good.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// What it is for.
    pub purpose: Purpose,
    /// What gives the right to it.
    pub token: Token,
    /// What to speak.
    pub protocol: Protocol,
    transport: Transport,
}

/// A request that cannot be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status, with its usual name.
    pub status: &'static str,
    /// What a person should know.
    pub reason: String,
}

impl Refusal {
    /// With a reason.
    pub fn new(status: &'static str, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into() }
    }

    /// The whole answer.
    #[must_use]
    pub fn answer(&self) -> String {
        format!(
            "HTTP/1.1 {}\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\r\n{}\n",
            self.status,
            self.reason.len() + 1,
            self.reason
        )
    }
}

const BAD_REQUEST: &str = "400 Bad Request";

impl Request {
    /// Reads a request's head, if it is all there: its length and what it says.
    ///
    /// # Errors
    /// The refusal to send.
    pub fn parse(head: &[u8]) -> Result<Option<(usize, Self)>, Refusal> {
        let mut fields = [httparse::EMPTY_HEADER; STREAM_HEAD_FIELDS_MAX];
        let mut request = httparse::Request::new(&mut fields);
        let length = match request.parse(head) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(Refusal::new(BAD_REQUEST, format!("not an HTTP request: {error}"))),
        };
        if !matches!(request.method, Some("GET" | "POST")) {
            return Err(Refusal::new("405 Method Not Allowed", "use GET or POST"));
        }
        let (purpose, token) = target(request.path.unwrap_or_default())
            .ok_or_else(|| Refusal::new("404 Not Found", "there is nothing here"))?;
        let fields = Fields(request.headers);
        let (transport, offered) = fields.transport()?;
        let protocols = Protocol::all(purpose, &transport);
        // The client's order counts, as in Kubernetes' own servers.
        let wanted = offered.iter().find_map(|name| protocols.iter().find(|known| known.name() == name));
        let Some(protocol) = wanted.copied() else {
            let known = protocols.iter().map(|known| known.name()).collect::<Vec<_>>().join(", ");
            let reason = format!("no common protocol: the client offers {offered:?}, this server {known}");
            return Err(Refusal::new("403 Forbidden", reason));
        };
        Ok(Some((length, Self { purpose, token, protocol, transport })))
    }

    /// The answer that begins the conversation.
    #[must_use]
    pub fn switch(&self) -> String {
        let mut answer = String::from("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n");
        let name = self.protocol.name();
        let written = match &self.transport {
            Transport::WebSocket { key } => write!(
                answer,
                "Upgrade: websocket\r\nSec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: {name}\r\n\r\n",
                accept_key(key)
            ),
            Transport::Spdy => {
                write!(answer, "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {name}\r\n\r\n")
            }
        };
        debug_assert!(written.is_ok(), "a string takes everything");
        answer
    }
}

fn target(path: &str) -> Option<(Purpose, Token)> {
    let path = path.split('?').next()?.strip_prefix('/')?;
    let (name, token) = path.split_once('/')?;
    let known = [Purpose::Exec, Purpose::Attach, Purpose::PortForward];
    let purpose = known.into_iter().find(|purpose| purpose.name() == name)?;
    Some((purpose, Token::of_client(token)))
}

struct Fields<'a>(&'a [httparse::Header<'a>]);

impl Fields<'_> {
    /// The elements of a field that is a list, over all its lines.
    fn list(&self, name: &str) -> Vec<String> {
        let lines = self.0.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        let texts = lines.filter_map(|field| std::str::from_utf8(field.value).ok());
        let elements = texts.flat_map(|text| text.split(',')).map(|element| element.trim().to_owned());
        elements.filter(|element| !element.is_empty()).collect()
    }

    fn has(&self, name: &str, element: &str) -> bool {
        self.list(name).iter().any(|known| known.eq_ignore_ascii_case(element))
    }

    /// How the client wants to speak, and the protocols it offers.
    fn transport(&self) -> Result<(Transport, Vec<String>), Refusal> {
        let bad = |reason: &str| Err(Refusal::new(BAD_REQUEST, reason));
        if self.has("content-length", "0")
            != self.0.iter().any(|f| f.name.eq_ignore_ascii_case("content-length"))
            || !self.list("transfer-encoding").is_empty()
        {
            return bad("the request has a body; there is no use for one");
        }
        if !self.has("connection", "upgrade") {
            return bad("ask for an upgrade to a WebSocket or to SPDY/3.1");
        }
        if self.has("upgrade", "spdy/3.1") {
            return Ok((Transport::Spdy, self.list("x-stream-protocol-version")));
        }
        if !self.has("upgrade", "websocket") {
            return bad("ask for an upgrade to a WebSocket or to SPDY/3.1");
        }
        if !self.has("sec-websocket-version", "13") {
            return Err(Refusal::new("426 Upgrade Required", "the version of WebSocket must be 13"));
        }
        match self.list("sec-websocket-key").as_slice() {
            [key] => {
                let transport = Transport::WebSocket { key: key.clone() };
                Ok((transport, self.list("sec-websocket-protocol")))
            }
            _ => bad("a WebSocket needs one Sec-WebSocket-Key"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(head: &str) -> Result<Request, Refusal> {
        Request::parse(head.replace('\n', "\r\n").as_bytes()).map(|parsed| parsed.unwrap().1)
    }

    const WEBSOCKET: &str = "GET /exec/abc HTTP/1.1\nHost: x\nConnection: keep-alive, Upgrade\nUpgrade: websocket\n\
        Sec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n\
        Sec-WebSocket-Protocol: v9.channel.k8s.io, v4.channel.k8s.io, v5.channel.k8s.io\n\n";
    const SPDY: &str = "POST /attach/abc?x=y HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: SPDY/3.1\n\
        Content-Length: 0\nX-Stream-Protocol-Version: v5.channel.k8s.io\n\
        X-Stream-Protocol-Version: v3.channel.k8s.io\n\n";

    #[test]
    fn both_transports_and_the_clients_preference() {
        let request = parse(WEBSOCKET).unwrap();
        assert_eq!(request.protocol, Protocol::WebSocket(CommandVersion::V4));
        assert!(request.switch().contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
        let request = parse(SPDY).unwrap();
        assert_eq!(request.purpose, Purpose::Attach);
        assert_eq!(request.token, Token::of_client("abc"));
        assert_eq!(request.protocol, Protocol::Spdy(CommandVersion::V3));
        assert!(request.switch().ends_with("X-Stream-Protocol-Version: v3.channel.k8s.io\r\n\r\n"));
    }

    #[test]
    fn port_forward_is_spdy_in_both_transports() {
        let tunnelled =
            WEBSOCKET.replace("/exec/", "/port-forward/").replace("v4.channel.k8s.io", TUNNELLED_FORWARD);
        assert_eq!(parse(&tunnelled).unwrap().protocol, Protocol::TunnelledForward);
        let plain = SPDY.replace("/attach/", "/port-forward/").replace("v3.channel.k8s.io", FORWARD);
        assert_eq!(parse(&plain).unwrap().protocol, Protocol::Forward);
    }

    #[test]
    fn what_is_refused() {
        let cases = [
            (WEBSOCKET.replace("GET", "PUT"), "405"),
            (WEBSOCKET.replace("/exec/", "/"), "404"),
            (WEBSOCKET.replace("/exec/", "/exec"), "404"),
            (WEBSOCKET.replace("Upgrade: websocket", "Upgrade: h2c"), "400"),
            (WEBSOCKET.replace("Connection", "X"), "400"),
            (WEBSOCKET.replace(": 13", ": 8"), "426"),
            (WEBSOCKET.replace("Key", "X"), "400"),
            (WEBSOCKET.replace("channel", "chanel"), "403"),
            (SPDY.replace("Length: 0", "Length: 5"), "400"),
            (SPDY.replace("channel", "chanel"), "403"),
            (SPDY.replace("HTTP/1.1", "HTTP/x"), "400"),
        ];
        for (head, status) in cases {
            let refusal = parse(&head).unwrap_err();
            assert!(refusal.status.starts_with(status), "{refusal:?} for {head}");
        }
    }

    proptest! {
        #[test]
        fn a_head_in_portions_is_a_head(cut in 0..WEBSOCKET.len()) {
            let head = WEBSOCKET.replace('\n', "\r\n");
            prop_assert_eq!(Request::parse(&head.as_bytes()[..cut]), Ok(None));
        }

        #[test]
        fn garbage_is_taken_or_refused(garbage in prop::collection::vec(any::<u8>(), 0..300), at in 0..WEBSOCKET.len()) {
            let mut head = WEBSOCKET.replace('\n', "\r\n").into_bytes();
            head.splice(at..at, garbage);
            let _outcome = Request::parse(&head);
        }
    }
}
