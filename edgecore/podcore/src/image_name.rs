//! Whether a text is the name of an image, in the words of a kubelet
//! (github.com/distribution/reference, `ParseNormalizedNamed`).

/// Longest path of a repository.
const PATH_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;
const DIGEST_DIGITS_MIN: usize = 32;
/// Hash functions, and how many digits they give.
const ALGORITHMS: [(&str, usize); 3] = [("sha256", 64), ("sha384", 96), ("sha512", 128)];
/// The domain of names that have none.
const DOMAIN: &str = "docker.io";

/// Why it is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageNameError {
    /// It could be the id of an image.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    Id(String),
    /// Letters of the repository that may not be.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    /// Letters before the repository that may not be.
    #[error("repository name must be lowercase")]
    UppercaseBefore,
    /// Anything else that may not be.
    #[error("invalid reference format")]
    Format,
    /// No registry takes it.
    #[error("repository name must not be more than {PATH_BYTES_MAX} characters")]
    TooLong,
    /// The digest has characters that may not be.
    #[error("invalid checksum digest format")]
    Digest,
    /// The digest is not as long as its algorithm makes it.
    #[error("invalid checksum digest length")]
    DigestLength,
    /// Nobody can check the digest.
    #[error("unsupported digest algorithm")]
    Algorithm,
}

/// Whether `image` can be looked for.
pub fn check(image: &str) -> Result<(), ImageNameError> {
    if image.len() == 64 && image.chars().all(is_low_hex) {
        return Err(ImageNameError::Id(image.to_owned()));
    }
    let (domain, remainder) = split(image);
    let repository = remainder.split(':').next().unwrap_or_default();
    if repository.to_lowercase() != repository {
        return Err(ImageNameError::Uppercase(repository.to_owned()));
    }
    if !is_valid(domain, &remainder) {
        let is_case = is_valid(&domain.to_lowercase(), &remainder.to_lowercase());
        return Err(if is_case { ImageNameError::UppercaseBefore } else { ImageNameError::Format });
    }
    let path = remainder.split(['@', ':']).next().unwrap_or_default();
    if path.len() > PATH_BYTES_MAX {
        return Err(ImageNameError::TooLong);
    }

    remainder.split_once('@').map_or(Ok(()), |(_, digest)| check_digest(digest))
}

/// The domain, and what follows it (`splitDockerDomain`).
fn split(image: &str) -> (&str, String) {
    let (domain, rest) = match image.split_once('/') {
        Some(("index.docker.io", rest)) => (DOMAIN, rest),
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.to_lowercase() != first =>
        {
            (first, rest)
        }
        Some(_) | None => (DOMAIN, image),
    };
    let is_official = domain == DOMAIN && !rest.contains('/');

    (domain, if is_official { format!("library/{rest}") } else { rest.to_owned() })
}

fn is_valid(domain: &str, remainder: &str) -> bool {
    let (name, digest) = match remainder.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (remainder, None),
    };
    let (path, tag) = match name.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (name, None),
    };

    (is_domain(domain) || is_component(domain))
        && path.split('/').all(is_component)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(is_digest)
}

fn is_low_hex(c: char) -> bool {
    c.is_ascii_digit() || matches!(c, 'a'..='f')
}

/// A host, by name or address, and perhaps a port.
fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        Some(_) | None => (domain, None),
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match address {
        Some(inner) => {
            !inner.is_empty() && inner.chars().all(|c| c.is_ascii_hexdigit() || c == ':')
        }
        None => host.split('.').all(is_label),
    };

    is_host && port.is_none_or(|port| !port.is_empty() && port.chars().all(|c| c.is_ascii_digit()))
}

/// A part of a path: small letters and digits, and between them one dot, one or two underscores or dashes.
fn is_component(part: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut between = part.split(is_inner);
    let is_separator =
        |text: &str| matches!(text, "" | "." | "_" | "__") || text.chars().all(|c| c == '-');

    part.starts_with(is_inner) && part.ends_with(is_inner) && between.all(is_separator)
}

fn is_tag(tag: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';

    tag.len() <= TAG_BYTES_MAX
        && tag.starts_with(is_word)
        && tag.chars().all(|c| is_word(c) || matches!(c, '.' | '-'))
}

fn is_digest(digest: &str) -> bool {
    let Some((algorithm, digits)) = digest.split_once(':') else { return false };
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic())
            && part.chars().all(|c| c.is_ascii_alphanumeric())
    };

    algorithm.split(['-', '_', '+', '.']).all(is_part)
        && digits.len() >= DIGEST_DIGITS_MIN
        && digits.chars().all(|c| c.is_ascii_hexdigit())
}

/// Of what is written as a digest, whether it can be one (github.com/opencontainers/go-digest).
fn check_digest(digest: &str) -> Result<(), ImageNameError> {
    let (algorithm, digits) = digest.split_once(':').unwrap_or((digest, ""));
    match ALGORITHMS.iter().find(|(name, _)| *name == algorithm) {
        Some((_, length)) if digits.len() != *length => Err(ImageNameError::DigestLength),
        Some(_) if digits.chars().all(is_low_hex) => Ok(()),
        None if algorithm.to_lowercase() == algorithm => Err(ImageNameError::Algorithm),
        Some(_) | None => Err(ImageNameError::Digest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(image: &str) -> String {
        check(image).err().map_or_else(String::new, |error| error.to_string())
    }

    #[test]
    fn what_registries_have_is_a_name() {
        let digest = "a".repeat(64);
        for image in [
            "busybox",
            "busybox:1.36",
            "library/busybox",
            "docker.io/busybox",
            "index.docker.io/a/b",
            "registry.k8s.io/e2e-test-images/agnhost:2.53",
            "localhost/a",
            "localhost:5000/a/b:T_a.g-1",
            "[::1]:5000/a",
            "[2001:db8::1]/a",
            "UPPER.example/a",
            "a_b.example/c",
            "a__b---c.d/e",
            "127.0.0.1:1/none:1",
            "a:1/b",
            &format!("a@sha256:{digest}"),
            &format!("a:1@sha256:{digest}"),
            &format!("sha256:{digest}"),
            &format!("a/{}", "b".repeat(253)),
        ] {
            assert_eq!(said(image), "", "{image}");
        }
    }

    #[test]
    fn what_is_no_name_is_told_in_the_words_of_a_kubelet() {
        let (digest, format) = ("a".repeat(64), "invalid reference format");
        let uppercase =
            |name: &str| format!("{format}: repository name ({name}) must be lowercase");
        for (image, expected) in [
            ("UPPER:1", &*uppercase("library/UPPER")),
            ("a/B", &uppercase("a/B")),
            ("localhost/a/B:1", &uppercase("a/B")),
            ("UPPER_domain.x/a", "repository name must be lowercase"),
            ("", format),
            ("a b", format),
            ("a//b", format),
            ("a..b", format),
            ("a___b", format),
            ("-a", format),
            ("a/", format),
            ("a:", format),
            ("a:.1", format),
            ("a:b:c", format),
            ("a:x/b", format),
            ("x.example:port/b", format),
            ("[::1/a", format),
            ("a@b", format),
            ("a@sha256:abc", format),
            (
                &digest,
                &format!(
                    "invalid repository name ({digest}), cannot specify 64-byte hexadecimal strings"
                ),
            ),
            (&format!("a:{}", "b".repeat(129)), format),
            (
                &format!("x.example/{}", "b".repeat(256)),
                "repository name must not be more than 255 characters",
            ),
            (&format!("a@sha256:{}", "A".repeat(64)), "invalid checksum digest format"),
            (&format!("a@sha512:{digest}"), "invalid checksum digest length"),
            (&format!("a@md5:{digest}"), "unsupported digest algorithm"),
            (&format!("a:1@MD5:{digest}"), "invalid checksum digest format"),
        ] {
            assert_eq!(said(image), expected, "{image}");
        }
    }
}
