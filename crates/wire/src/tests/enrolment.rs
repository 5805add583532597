//! Who gets in: tokens, certificates, authorities, and what each refusal is called.

use super::lab::*;
use crate::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use tempfile::TempDir;

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

#[test]
fn a_token_makes_an_agent_that_may_connect() {
    let lab = Lab::new();
    let identity = lab.identity(1);
    assert_eq!(identity.agent_id, agent(1));
    let dir = lab.dir.path().join("agent");
    assert_eq!(Identity::load(&dir).unwrap_err().code(), "STANDIN-E1013");
    identity.save(&dir).unwrap();
    for entry in fs::read_dir(&dir).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    let loaded = Identity::load(&dir).unwrap();
    assert_eq!(loaded, identity);
    assert!(loaded.remaining().unwrap() > Duration::from_secs(179 * 24 * 3600));
    lab.connect(&loaded).unwrap();
}

#[test]
fn a_token_works_once() {
    let lab = Lab::new();
    let token = lab.token(1).to_string();
    lab.enrol(&token).unwrap();
    assert_eq!(lab.enrol(&token).unwrap_err().code(), "STANDIN-E1011");
}

#[test]
fn a_wrong_secret_is_refused() {
    let lab = Lab::new();
    let token = Token::generate(lab.authority.fingerprint()).unwrap();
    let error = lab.enrol(&token.to_string()).unwrap_err();
    assert!(matches!(error, EnrolError::Refused { .. }), "{error}");
    assert_eq!(lab.enrol("standin1.x.y").unwrap_err().code(), "STANDIN-E1010");
}

#[test]
fn the_secret_is_not_sent_to_another_appliance() {
    let (lab, other) = (Lab::new(), Lab::new());
    let token = lab.token(1);
    let error = enrol(&other.address(), &token.to_string(), "h", QUICK).unwrap_err();
    assert_eq!((error.code(), error.is_retryable()), ("STANDIN-E1018", false));
    // It is still good where it belongs.
    lab.enrol(&token.to_string()).unwrap();
}

#[test]
fn an_expired_certificate_is_told_apart() {
    let lab = Lab::new();
    let identity = signed(&lab.authority, 1, Duration::ZERO);
    std::thread::sleep(Duration::from_millis(1100)); // Certificates count seconds.
    assert_eq!(identity.remaining().unwrap(), Duration::ZERO);
    let error = lab.connect(&identity).err().unwrap();
    assert_eq!((error.code(), error.is_retryable()), ("STANDIN-E1006", false), "{error:?}");
}

#[test]
fn a_foreign_authority_is_refused_by_both_ends() {
    let lab = Lab::new();
    let foreign = TempDir::new().unwrap();
    let foreign = authority(foreign.path());
    let identity = signed(&foreign, 1, YEAR);
    // The agent does not believe this appliance.
    assert_eq!(lab.connect(&identity).err().unwrap().code(), "STANDIN-E1005");
    // The appliance does not believe that agent, even if the agent trusts it.
    let fooled = Identity { authority: lab.authority.certificate_pem().to_owned(), ..identity };
    assert_eq!(lab.connect(&fooled).err().unwrap().code(), "STANDIN-E1012");
}

#[test]
fn an_agent_cannot_pose_as_the_appliance() {
    use crate::authority::ServerCertificate;
    let lab = Lab::new();
    let (impostor, victim) = (signed(&lab.authority, 1, YEAR), signed(&lab.authority, 2, YEAR));
    let authority = victim.authority_der().unwrap();
    let chain = vec![impostor.certificate_der().unwrap(), authority.clone()];
    let certificate = ServerCertificate { chain, key: impostor.key_der().unwrap() };
    let config = std::sync::Arc::new(tls::appliance_config(authority, certificate).unwrap());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let posing = std::thread::spawn(move || Connection::accept(listener.accept().unwrap().0, &config, QUICK).is_err());
    assert!(Connection::connect(&address, &victim, QUICK).is_err());
    assert!(posing.join().unwrap());
}

#[test]
fn the_name_in_a_request_counts_for_nothing() {
    let lab = Lab::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![tls::SERVER_NAME.to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, agent(9).as_str());
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    let certificate = lab.authority.sign_agent(&csr, &agent(1), YEAR).unwrap();
    let identity = Identity::new(certificate, key.serialize_pem(), lab.authority.certificate_pem().to_owned()).unwrap();
    assert_eq!(identity.agent_id, agent(1));
    let text =
        format!("{:?}", x509_parser::parse_x509_certificate(&identity.certificate_der().unwrap()).unwrap().1.subject_alternative_name());
    assert!(!text.contains(tls::SERVER_NAME), "{text}");
    for bad in ["", "nonsense", &csr[..csr.len() / 2], &"x".repeat(100_000)] {
        assert_eq!(lab.authority.sign_agent(bad, &agent(1), YEAR).unwrap_err().code(), "STANDIN-E1015");
    }
}

#[test]
fn a_certificate_is_renewed_over_the_same_key() {
    let lab = Lab::new();
    let identity = signed(&lab.authority, 1, Duration::from_secs(3600));
    let ToAppliance::Renew { csr } = enrol::renewal_request(&identity).unwrap() else { panic!() };
    let certificate = lab.authority.sign_agent(&csr, &identity.agent_id, YEAR).unwrap();
    let renewed = identity.renewed(certificate).unwrap();
    assert!(renewed.remaining().unwrap() > identity.remaining().unwrap());
    lab.connect(&renewed).unwrap();
    let of_another = signed(&lab.authority, 2, YEAR).certificate;
    assert!(identity.renewed(of_another).is_err());
}

#[test]
fn an_agent_cannot_say_hello_as_another() {
    let lab = Lab::new();
    let mut connection = Connection::connect(&lab.address(), &lab.identity(1), QUICK).unwrap();
    let error = open_session(&mut connection, hello(&agent(2))).unwrap_err();
    assert_eq!(error.code(), "STANDIN-E1012");
}

#[test]
fn another_protocol_is_refused_with_both_numbers() {
    let lab = Lab::new();
    let mut connection = Connection::connect(&lab.address(), &lab.identity(1), QUICK).unwrap();
    let error = open_session(&mut connection, Hello { protocol: 99, ..hello(&agent(1)) }).unwrap_err();
    assert_eq!(error.code(), "STANDIN-E1004");
    assert!(error.to_string().contains("99"), "{error}");
}

#[test]
fn the_authority_survives_reopening_and_guards_its_key() {
    let dir = TempDir::new().unwrap();
    let first = authority(dir.path()).fingerprint().to_owned();
    assert_eq!(authority(dir.path()).fingerprint(), first);
    assert_eq!(fs::metadata(dir.path().join("authority.key")).unwrap().permissions().mode() & 0o777, 0o600);
    let other = TempDir::new().unwrap();
    authority(other.path());
    fs::copy(other.path().join("authority.key"), dir.path().join("authority.key")).unwrap();
    assert_eq!(Authority::open_or_create(dir.path()).err().unwrap().code(), "STANDIN-E1014");
}
