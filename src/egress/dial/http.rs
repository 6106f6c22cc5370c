//! HTTP CONNECT.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue, PROXY_AUTHORIZATION};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;

use super::{DialError, Wire};
use crate::domain::network::{Credentials, Proxy};

/// Bytes of a proxy's answer that are read before it is too long.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// A tunnel to a target, through the proxy at the other end of a stream.
pub(super) async fn connect<S>(stream: S, proxy: &Proxy, target: SocketAddr) -> Result<Box<dyn Wire>, DialError>
where
    S: Wire + 'static,
{
    let failed = |source| DialError::Http { proxy: proxy.to_string(), source };
    let shaking = http1::Builder::new().max_buf_size(ANSWER_BYTES_MAX).handshake(TokioIo::new(stream));
    let (mut sender, connection) = shaking.await.map_err(failed)?;
    let tunnel = async {
        let answer: Response<Incoming> = sender.send_request(request(proxy, target)).await.map_err(failed)?;
        match answer.status() {
            status if status.is_success() => hyper::upgrade::on(answer).await.map_err(failed),
            status => Err(DialError::Refused { proxy: proxy.to_string(), status }),
        }
    };
    // The connection is driven here and by no task, so that it ends with the caller's patience.
    let (mut tunnel, connection) = (std::pin::pin!(tunnel), connection.with_upgrades());
    let tunnel = tokio::select! {
        biased;
        outcome = tunnel.as_mut() => outcome?,
        // It ends well once it has handed the stream over.
        ended = connection => {
            ended.map_err(failed)?;
            tunnel.await?
        }
    };
    Ok(Box::new(TokioIo::new(tunnel)))
}

fn request(proxy: &Proxy, target: SocketAddr) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::CONNECT;
    // An address and a port are an authority, and as a header they are ASCII: neither fails.
    let authority = target.to_string();
    *request.uri_mut() = Uri::try_from(authority.as_str()).unwrap_or_default();
    let headers = request.headers_mut();
    headers.extend(HeaderValue::from_str(&authority).ok().map(|host| (HOST, host)));
    headers.extend(proxy.credentials.as_ref().and_then(basic).map(|value| (PROXY_AUTHORIZATION, value)));
    request
}

/// Basic authentication (RFC 7617).
fn basic(credentials: &Credentials) -> Option<HeaderValue> {
    let pair = format!("{}:{}", credentials.user.reveal(), credentials.password.reveal());
    let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::StatusCode;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const TARGET: &str = "198.51.100.1:443";

    /// What was asked, and what came of it.
    async fn ask(url: &str, answer: &'static [u8]) -> (String, Result<Box<dyn Wire>, DialError>) {
        let proxy: Proxy = url.parse().unwrap();
        let (near, mut far) = duplex(4_096);
        let server = tokio::spawn(async move {
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(far.read_u8().await.unwrap());
            }
            let _ = far.write_all(answer).await;
            (String::from_utf8(asked).unwrap(), far)
        });
        let connected = connect(near, &proxy, TARGET.parse().unwrap()).await;
        let (asked, far) = server.await.unwrap();
        // Held until here, so that the end of the stream is not what is seen.
        drop(far);
        (asked, connected)
    }

    #[tokio::test]
    async fn a_tunnel_gives_what_came_behind_the_answer_first() {
        let (asked, tunnel) = ask("http://user:pa%20ss@192.0.2.7:3128", b"HTTP/1.1 200 OK\r\n\r\nhello").await;
        assert!(asked.starts_with("CONNECT 198.51.100.1:443 HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("proxy-authorization: Basic dXNlcjpwYSBzcw==\r\n"), "{asked}");
        let mut heard = String::new();
        tunnel.unwrap().read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "hello");
    }

    #[tokio::test]
    async fn refusals_and_nonsense_are_errors_without_credentials_in_them() {
        for answer in [
            &b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n"[..],
            b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nx: ",
        ] {
            let (_, refused) = tokio::time::timeout(
                std::time::Duration::from_millis(500),
                ask("http://user:hunter2@192.0.2.7:3128", answer),
            )
            .await
            .unwrap_or((String::new(), Err(DialError::Refused { proxy: String::new(), status: StatusCode::OK })));
            let Err(error) = refused else { panic!("a tunnel") };
            assert!(!format!("{error:?} {error}").contains("hunter2"));
        }
        let (_, refused) = ask("http://192.0.2.7:3128", b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await;
        assert!(matches!(refused, Err(DialError::Refused { status: StatusCode::FORBIDDEN, .. })));
    }
}
