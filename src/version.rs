//! Which podinit this is: facts that the build script has put in.
#![forbid(unsafe_code)]

/// The facts of a build. None is empty; what the build could not know is "unknown".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Build {
    /// Strict semantic version, without a leading "v".
    pub version: &'static str,
    /// The release tag of the commit, or "none".
    pub tag: &'static str,
    /// The commit, 40 hexadecimal digits.
    pub commit: &'static str,
    /// The commit's date, or that of `SOURCE_DATE_EPOCH`: RFC 3339, UTC.
    pub build_date: &'static str,
    /// The target triple.
    pub target: &'static str,
    /// What `rustc --version` said.
    pub rust_version: &'static str,
    /// What `cargo --version` said.
    pub cargo_version: &'static str,
    /// Every package of Cargo.lock, one a line: what a build or its tests may use.
    pub cargo_tree: &'static str,
}

/// This build.
pub const BUILD: Build = Build {
    version: env!("CARGO_PKG_VERSION"),
    tag: env!("PODINIT_BUILD_TAG"),
    commit: env!("PODINIT_BUILD_COMMIT"),
    build_date: env!("PODINIT_BUILD_DATE"),
    target: env!("PODINIT_BUILD_TARGET"),
    rust_version: env!("PODINIT_BUILD_RUST"),
    cargo_version: env!("PODINIT_BUILD_CARGO"),
    cargo_tree: include_str!(concat!(env!("OUT_DIR"), "/cargo_tree")),
};

#[cfg(test)]
mod tests {
    use super::BUILD;

    #[test]
    fn version_is_strictly_semantic() {
        let (core, _) = BUILD.version.split_once(['-', '+']).unwrap_or((BUILD.version, ""));
        let numbers: Vec<&str> = core.split('.').collect();
        assert_eq!(numbers.len(), 3, "{}", BUILD.version);
        assert!(numbers.iter().all(|number| number.parse::<u64>().is_ok_and(|n| n.to_string() == *number)));
    }

    #[test]
    fn facts_are_there_and_are_single_lines() {
        for fact in
            [BUILD.tag, BUILD.commit, BUILD.build_date, BUILD.target, BUILD.rust_version, BUILD.cargo_version]
        {
            assert!(!fact.is_empty() && !fact.contains('\n'), "{fact:?}");
        }
        assert!(BUILD.cargo_tree.lines().any(|line| line.starts_with("podinit v")));
    }
}
