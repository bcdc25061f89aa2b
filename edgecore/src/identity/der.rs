//! As much DER (X.690) as an identity needs: it writes a request for a certificate (PKCS #10) and reads how
//! long a certificate is valid.

use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// `[0]`, constructed.
const CONTEXT_0: u8 = 0xa0;

/// id-at-organizationName, 2.5.4.10.
const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];
/// id-at-commonName, 2.5.4.3.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// id-ecPublicKey, 1.2.840.10045.2.1.
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
/// prime256v1, 1.2.840.10045.3.1.7.
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// ecdsa-with-SHA256, 1.2.840.10045.4.3.2.
const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut bytes = vec![tag];
    match u8::try_from(content.len()) {
        Ok(short) if short < 0x80 => bytes.push(short),
        Ok(_) | Err(_) => {
            let len = content.len().to_be_bytes();
            let len = &len[len.iter().take_while(|byte| **byte == 0).count()..];
            // At most eight.
            bytes.push(0x80 | u8::try_from(len.len()).unwrap_or_default());
            bytes.extend(len);
        }
    }
    bytes.extend(content);

    bytes
}

fn attribute(oid: &[u8], text: &str) -> Vec<u8> {
    let value = element(UTF8_STRING, &[text.as_bytes()]);

    element(SET, &[&element(SEQUENCE, &[&element(OBJECT_IDENTIFIER, &[oid]), &value])])
}

fn algorithm(oids: &[&[u8]]) -> Vec<u8> {
    let oids: Vec<_> = oids.iter().map(|oid| element(OBJECT_IDENTIFIER, &[oid])).collect();

    element(SEQUENCE, &oids.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// What of a request is signed: this subject wants a certificate for a key on P-256.
pub(super) fn request_info(organization: &str, common_name: &str, point: &[u8]) -> Vec<u8> {
    let name = [attribute(ORGANIZATION, organization), attribute(COMMON_NAME, common_name)];
    let key = [algorithm(&[EC_PUBLIC_KEY, P256]), element(BIT_STRING, &[&[0], point])];

    element(
        SEQUENCE,
        &[
            &element(INTEGER, &[&[0]]),
            &element(SEQUENCE, &[&name[0], &name[1]]),
            &element(SEQUENCE, &[&key[0], &key[1]]),
            &element(CONTEXT_0, &[]),
        ],
    )
}

/// The request, signed by ECDSA with SHA-256.
pub(super) fn request(info: &[u8], signature: &[u8]) -> Vec<u8> {
    let signature = element(BIT_STRING, &[&[0], signature]);

    element(SEQUENCE, &[info, &algorithm(&[ECDSA_SHA256]), &signature])
}

/// Takes an element from the front: its tag and content.
fn take<'a>(bytes: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, mut rest) = rest.split_first()?;
    let mut len = usize::from(*first);
    if *first >= 0x80 {
        let (digits, after) = rest.split_at_checked(usize::from(*first & 0x7f))?;
        len = digits.iter().try_fold(0_usize, |len, digit| {
            len.checked_mul(256)?.checked_add(usize::from(*digit))
        })?;
        rest = after;
    }
    let (content, after) = rest.split_at_checked(len)?;
    *bytes = after;

    Some((*tag, content))
}

fn inside<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    take(bytes).filter(|(tag, _)| *tag == SEQUENCE).map(|(_, content)| content)
}

fn time(bytes: &mut &[u8]) -> Option<Duration> {
    let (tag, text) = take(bytes)?;
    let text = std::str::from_utf8(text).ok()?;
    let text = match tag {
        // Two digits of the year: up to 2049 (RFC 5280, section 4.1.2.5.1).
        UTC_TIME if text.get(..2)? < "50" => format!("20{text}"),
        UTC_TIME => format!("19{text}"),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let time = DateTime::strptime("%Y%m%d%H%M%SZ", text).ok()?.to_zoned(TimeZone::UTC).ok()?;

    Duration::try_from(time.timestamp().as_duration()).ok()
}

/// From when until when a certificate is valid, since 1970.
pub(crate) fn validity(mut certificate: &[u8]) -> Option<(Duration, Duration)> {
    let mut all = inside(&mut certificate)?;
    let mut fields = inside(&mut all)?;
    // The version may be left out.
    if fields.first() == Some(&CONTEXT_0) {
        take(&mut fields)?;
    }
    // Serial number, algorithm, issuer.
    for _ in 0..3 {
        take(&mut fields)?;
    }
    let mut validity = inside(&mut fields)?;

    Some((time(&mut validity)?, time(&mut validity)?))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn how_long_a_certificate_is_valid() {
        let seconds = |(year, month, day): (i32, u8, u8)| {
            rcgen::date_time_ymd(year, month, day).unix_timestamp()
        };
        for (from, until) in [((2026, 1, 2), (2026, 2, 1)), ((1999, 12, 31), (2200, 1, 1))] {
            let mut params = CertificateParams::default();
            params.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
            params.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            let found = validity(certificate.der()).unwrap();
            let expected = [from, until].map(|date| u64::try_from(seconds(date)).unwrap());
            assert_eq!([found.0.as_secs(), found.1.as_secs()], expected);
        }
    }

    #[test]
    fn what_is_cut_off_is_no_certificate() {
        let certificate = CertificateParams::default();
        let certificate = certificate.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let whole = certificate.der().len();
        assert!((0..whole).all(|len| validity(&certificate.der()[..len]).is_none()));
        assert_eq!(validity(&[0x30, 0xff, 1]), None);
        assert_eq!(validity(&[0x30, 0x88, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
