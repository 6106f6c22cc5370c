//! What the daemon itself asks the DNS: whether a customer's domain may lead here.

use async_trait::async_trait;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::sync::Semaphore;

use super::Dialer;
use super::message::Question;
use super::upstream::{Servers, Unanswered};
use crate::domain::dns::NameServer;
use crate::lifecycle::{Names, NamesError};

/// Questions at once; more wait.
const QUESTIONS_MAX: usize = 16;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
enum LookupError {
    #[error("`{0}` is no name")]
    Name(String, #[source] hickory_proto::ProtoError),
    #[error("cannot ask for `{0}`")]
    Unanswered(String, #[source] Unanswered),
    #[error("a name server answered {1} to the question for `{0}`")]
    Refused(String, ResponseCode),
}

/// Asks the daemon's name servers.
#[derive(Debug)]
pub struct Lookup {
    servers: Servers,
    dialer: Dialer,
    places: Semaphore,
}

impl Lookup {
    /// Of these name servers, or the host's own where there are none.
    pub fn new(upstreams: Vec<NameServer>, dialer: Dialer) -> Self {
        Self { servers: Servers::new(upstreams), dialer, places: Semaphore::new(QUESTIONS_MAX) }
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Result<Message, NamesError> {
        let failed = |error: LookupError| NamesError(Box::new(error));
        let read = Name::from_ascii(format!("{name}.")).map_err(|e| failed(LookupError::Name(name.to_owned(), e)))?;
        // The semaphore is never closed.
        let _place = self.places.acquire().await;
        let answer = self.servers.ask(&self.dialer, &[], &Question::own(read, kind)).await;
        let answer = answer.map_err(|error| failed(LookupError::Unanswered(name.to_owned(), error)))?;
        match answer.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => Ok(answer),
            code => Err(failed(LookupError::Refused(name.to_owned(), code))),
        }
    }
}

#[async_trait]
impl Names for Lookup {
    async fn texts(&self, name: &str) -> Result<Vec<String>, NamesError> {
        let answer = self.ask(name, RecordType::TXT).await?;
        let text = |data: &RData| match data {
            RData::TXT(txt) => Some(txt.txt_data.iter().map(|part| String::from_utf8_lossy(part)).collect()),
            _ => None,
        };
        Ok(answer.answers.iter().filter_map(|record| text(&record.data)).collect())
    }

    async fn canonical(&self, name: &str) -> Result<Option<String>, NamesError> {
        let answer = self.ask(name, RecordType::CNAME).await?;
        Ok(answer.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) => Some(target.0.to_ascii()),
            _ => None,
        }))
    }
}
