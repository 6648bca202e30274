//! The cluster's own certificate authority: every identity of the test bed is a client certificate.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, SigningKey,
};

/// A certificate and its private key, both PEM.
#[derive(Debug)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

/// Signs the certificates of one cluster.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    key: String,
}

const CERTIFICATE_FILE: &str = "ca.crt";
const KEY_FILE: &str = "ca.key";

impl Authority {
    pub fn create() -> Result<Self> {
        let key = KeyPair::generate()?;
        let params = authority_params();
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self {
            certificate,
            key: key.serialize_pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads what [`Self::save`] wrote into `directory`.
    pub fn load(directory: &Path) -> Result<Self> {
        let read = |file: &str| {
            let path = directory.join(file);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let (certificate, key) = (read(CERTIFICATE_FILE)?, read(KEY_FILE)?);
        let issuer = Issuer::new(authority_params(), KeyPair::from_pem(&key)?);
        Ok(Self {
            issuer,
            certificate,
            key,
        })
    }

    pub fn save(&self, directory: &Path) -> Result<()> {
        write_private(&directory.join(CERTIFICATE_FILE), &self.certificate)?;
        write_private(&directory.join(KEY_FILE), &self.key)
    }

    /// The authority's certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A client certificate: the API server takes the common name as user and each organisation as a group.
    pub fn client<G: AsRef<str>>(&self, name: &str, groups: &[G]) -> Result<Identity> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let plain = params.signed_by(&key, &self.issuer)?;
        let der = self.with_subject(plain.der(), name, groups)?;
        let certificate = pem::encode_config(
            &pem::Pem::new("CERTIFICATE", der),
            pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
        );
        Ok(Identity {
            certificate,
            key: key.serialize_pem(),
        })
    }

    /// The certificate `der` with another subject, signed again: rcgen holds one value per attribute of a name, and a
    /// user is in several groups.
    fn with_subject<G: AsRef<str>>(&self, der: &[u8], name: &str, groups: &[G]) -> Result<Vec<u8>> {
        const SUBJECT: usize = 5; // RFC 5280, 4.1: version, serial, algorithm, issuer, validity, subject, …
        let (fields, algorithm) = yasna::parse_der(der, |reader| {
            reader.read_sequence(|reader| {
                let mut fields = Vec::new();
                reader.next().read_sequence(|reader| {
                    #[expect(
                        clippy::redundant_closure_for_method_calls,
                        reason = "the path has one lifetime only"
                    )]
                    while let Some(field) = reader.read_optional(|field| field.read_der())? {
                        fields.push(field);
                    }
                    Ok(())
                })?;
                let algorithm = reader.next().read_der()?;
                reader.next().read_der()?;
                Ok((fields, algorithm))
            })
        })?;
        let attributes: Vec<_> = groups
            .iter()
            .map(|group| (10, group.as_ref()))
            .chain(std::iter::once((3, name)))
            .collect();
        let subject = yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                for (kind, value) in attributes {
                    writer.next().write_set(|writer| {
                        writer.next().write_sequence(|writer| {
                            writer
                                .next()
                                .write_oid(&yasna::models::ObjectIdentifier::from_slice(&[2, 5, 4, kind]));
                            writer.next().write_utf8_string(value);
                        });
                    });
                }
            });
        });
        let content = yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                for (index, field) in fields.iter().enumerate() {
                    writer.next().write_der(if index == SUBJECT { &subject } else { field });
                }
            });
        });
        let signature = self.issuer.key().sign(&content)?;
        Ok(yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_der(&content);
                writer.next().write_der(&algorithm);
                writer.next().write_bitvec_bytes(&signature, signature.len() * 8);
            });
        }))
    }

    /// The API server's serving certificate, for loopback and for its Service.
    pub fn server(&self) -> Result<Identity> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        params.subject_alt_names = vec![
            SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            SanType::IpAddress(IpAddr::V4(crate::cluster::FIRST_SERVICE_ADDRESS)),
            SanType::DnsName("localhost".try_into()?),
            SanType::DnsName("kubernetes.default.svc".try_into()?),
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Identity {
            certificate,
            key: key.serialize_pem(),
        })
    }
}

/// A key pair that service account tokens are signed with: the public and the private half, PEM.
pub fn signing_keys() -> Result<(String, String)> {
    let keys = KeyPair::generate()?;
    Ok((keys.public_key_pem(), keys.serialize_pem()))
}

/// Writes `content` to `path`, readable by its owner alone, in one step.
pub fn write_private(path: &Path, content: &str) -> Result<()> {
    use std::io::Write as _;
    let directory = path.parent().context("a file has a directory")?;
    let mut file = tempfile::NamedTempFile::new_in(directory)
        .with_context(|| format!("cannot write into {}", directory.display()))?;
    file.write_all(content.as_bytes())?;
    file.persist(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "backstep-testbed");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params
}
