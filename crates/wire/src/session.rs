//! How a session begins: the agent says hello, the appliance welcomes or refuses it. Both check the protocol number first.
//!
//! After this both ends know each other's identity (from certificates) and version (from words), and messages may go either way. The
//! agent named in `Hello` must be the one in the certificate; only the certificate counts for what it may do.

use crate::connection::Connection;
use crate::error::ConnectionError as Error;
use crate::message::{Hello, PROTOCOL, Refusal, ToAgent, ToAppliance, Welcome};
use standin_model::AgentId;
use std::time::Duration;

/// For hello and welcome; an inventory is small and ready.
const GREETING: Duration = Duration::from_secs(20);

/// Agent's side. A refusal of certificate or protocol comes out here as its own error.
pub fn open_session(connection: &mut Connection, hello: Hello) -> Result<Welcome, Error> {
    let sent = connection.send(&ToAppliance::Hello(Box::new(hello)));
    connection.receiver().set_deadline(Some(GREETING));
    // Even if sending failed there may be an alert to read, which says why.
    let answer = match (connection.receive::<ToAgent>(), sent) {
        (Ok(answer), _) => answer.control()?,
        (Err(Error::Lost { .. } | Error::Closed), Err(sent)) => return Err(sent),
        (Err(error), _) => return Err(error),
    };
    connection.receiver().set_deadline(None);
    match answer {
        ToAgent::Welcome(welcome) => check_protocol(welcome.protocol).map(|()| welcome),
        ToAgent::Refused(Refusal { code, cause }) => Err(refused(code, cause)),
        _ => Err(Error::Unexpected { expected: "welcome" }),
    }
}

/// Appliance's side: `agent` is from the certificate. The caller may still refuse by [`refuse`] before it sends anything else.
pub fn accept_session(connection: &mut Connection, agent: &AgentId, appliance_version: &str) -> Result<Hello, Error> {
    connection.receiver().set_deadline(Some(GREETING));
    let hello = match connection.receive::<ToAppliance>()?.control()? {
        ToAppliance::Hello(hello) => *hello,
        _ => return Err(Error::Unexpected { expected: "hello" }),
    };
    connection.receiver().set_deadline(None);
    if let Err(error) = check_protocol(hello.protocol) {
        let cause = format!("this appliance ({appliance_version}) speaks protocol {PROTOCOL}, the agent speaks {}", hello.protocol);
        refuse(connection, error.code(), &cause);
        return Err(error);
    }
    if hello.agent != *agent {
        let cause = format!("the certificate was issued to {agent}, but {} says hello", hello.agent);
        refuse(connection, Error::NotAnAgent.code(), &cause);
        return Err(Error::NotAnAgent);
    }
    connection.send(&ToAgent::Welcome(Welcome { protocol: PROTOCOL, appliance_version: appliance_version.to_owned() }))?;
    Ok(hello)
}

/// Tells the agent why it is not wanted. Whether it hears that is its own business.
pub fn refuse(connection: &Connection, code: &str, cause: &str) {
    let _ = connection.send(&ToAgent::Refused(Refusal::new(code, cause)));
    connection.sender().close();
}

pub(crate) fn check_protocol(theirs: u32) -> Result<(), Error> {
    if theirs == PROTOCOL { Ok(()) } else { Err(Error::ProtocolMismatch { ours: PROTOCOL, theirs }) }
}

fn refused(code: String, cause: String) -> Error {
    Error::Refused { code, cause }
}
