//! Names of system calls, architectures and errnos.

use libseccomp::{ScmpArch, ScmpSyscall};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::verdict::ERRNO_MAX;

/// What an x32 number has set (`__X32_SYSCALL_BIT`, asm/unistd.h). Its
/// architecture is x86-64's.
const X32_BIT: i32 = 0x4000_0000;

/// An architecture that a notification can be of, spelled as in OCI profiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "their names say it all")]
pub enum Architecture {
    #[serde(rename = "SCMP_ARCH_X86_64")]
    X86_64,
    #[serde(rename = "SCMP_ARCH_X86")]
    X86,
    #[serde(rename = "SCMP_ARCH_X32")]
    X32,
    #[serde(rename = "SCMP_ARCH_AARCH64")]
    Aarch64,
    #[serde(rename = "SCMP_ARCH_ARM")]
    Arm,
    #[serde(rename = "SCMP_ARCH_RISCV64")]
    Riscv64,
    #[serde(rename = "SCMP_ARCH_S390X")]
    S390x,
    #[serde(rename = "SCMP_ARCH_PPC64LE")]
    Ppc64le,
}

impl Architecture {
    /// All that are known here.
    pub const ALL: [Self; 8] = [
        Self::X86_64,
        Self::X86,
        Self::X32,
        Self::Aarch64,
        Self::Arm,
        Self::Riscv64,
        Self::S390x,
        Self::Ppc64le,
    ];

    /// What this program was built for.
    pub const NATIVE: Self = if cfg!(target_arch = "aarch64") {
        Self::Aarch64
    } else if cfg!(target_arch = "riscv64") {
        Self::Riscv64
    } else if cfg!(target_arch = "s390x") {
        Self::S390x
    } else if cfg!(target_arch = "powerpc64") {
        Self::Ppc64le
    } else if cfg!(target_arch = "arm") {
        Self::Arm
    } else if cfg!(target_arch = "x86") {
        Self::X86
    } else {
        Self::X86_64
    };

    /// Its number in a notification: `AUDIT_ARCH_*` of linux/audit.h, that is the
    /// ELF machine with a bit for 64 bits and one for little-endian.
    #[must_use]
    pub fn audit(self) -> u32 {
        const BITS_64: u32 = 0x8000_0000;
        const LITTLE_ENDIAN: u32 = 0x4000_0000;
        match self {
            Self::X86_64 | Self::X32 => BITS_64 | LITTLE_ENDIAN | 62,
            Self::X86 => LITTLE_ENDIAN | 3,
            Self::Aarch64 => BITS_64 | LITTLE_ENDIAN | 183,
            Self::Arm => LITTLE_ENDIAN | 40,
            Self::Riscv64 => BITS_64 | LITTLE_ENDIAN | 243,
            Self::S390x => BITS_64 | 22,
            Self::Ppc64le => BITS_64 | LITTLE_ENDIAN | 21,
        }
    }

    /// The architecture of a notification: x32 shares its number with x86-64 and
    /// is told by the call's.
    #[must_use]
    pub fn of(audit: u32, syscall: i32) -> Option<Self> {
        let found = Self::ALL.into_iter().find(|known| known.audit() == audit)?;
        let is_x32 = found == Self::X86_64 && syscall > 0 && syscall & X32_BIT != 0;
        Some(if is_x32 { Self::X32 } else { found })
    }

    /// As OCI profiles and libseccomp spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X86_64 => "SCMP_ARCH_X86_64",
            Self::X86 => "SCMP_ARCH_X86",
            Self::X32 => "SCMP_ARCH_X32",
            Self::Aarch64 => "SCMP_ARCH_AARCH64",
            Self::Arm => "SCMP_ARCH_ARM",
            Self::Riscv64 => "SCMP_ARCH_RISCV64",
            Self::S390x => "SCMP_ARCH_S390X",
            Self::Ppc64le => "SCMP_ARCH_PPC64LE",
        }
    }

    fn library(self) -> ScmpArch {
        match self {
            Self::X86_64 => ScmpArch::X8664,
            Self::X86 => ScmpArch::X86,
            Self::X32 => ScmpArch::X32,
            Self::Aarch64 => ScmpArch::Aarch64,
            Self::Arm => ScmpArch::Arm,
            Self::Riscv64 => ScmpArch::Riscv64,
            Self::S390x => ScmpArch::S390X,
            Self::Ppc64le => ScmpArch::Ppc64Le,
        }
    }
}

/// The name of a call; `None` if libseccomp does not know the number.
#[must_use]
pub fn name(audit: u32, syscall: i32) -> Option<String> {
    let architecture = Architecture::of(audit, syscall)?;
    ScmpSyscall::from(syscall).get_name_by_arch(architecture.library()).ok()
}

/// The name of a call, or its number if libseccomp does not know that.
#[must_use]
pub fn name_or_number(audit: u32, syscall: i32) -> String {
    name(audit, syscall).unwrap_or_else(|| syscall.to_string())
}

/// The number of a call; `None` if the architecture does not have it.
#[must_use]
pub fn number(name: &str, architecture: Architecture) -> Option<i32> {
    // libseccomp speaks C: a zero byte would end the name early.
    if name.contains('\0') {
        return None;
    }
    let found = ScmpSyscall::from_name_by_arch(name, architecture.library()).ok()?;
    // Negative numbers are libseccomp's own, for calls that it knows of other architectures.
    Some(found.as_raw_syscall()).filter(|number| *number >= 0)
}

/// The number of an errno by its name or its digits; `None` if it is none.
#[must_use]
pub fn errno_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=ERRNO_MAX).contains(&number).then_some(number);
    }
    // The greatest that Linux has is below this on every architecture (asm-generic/errno.h; MIPS has 1133).
    (1..=200).find(|number| errno_name(*number).as_deref() == Some(text))
}

/// The name of an errno: `EPERM`.
#[must_use]
pub fn errno_name(number: i32) -> Option<String> {
    let errno = Errno::from_raw(number);
    (errno != Errno::UnknownErrno).then(|| format!("{errno:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_of_every_architecture() {
        for (architecture, audit, name_of, expected) in [
            (Architecture::X86_64, 0xc000_003e, "mkdir", 83),
            (Architecture::X86, 0x4000_0003, "mkdir", 39),
            (Architecture::X32, 0xc000_003e, "mkdir", 0x4000_0053),
            (Architecture::Aarch64, 0xc000_00b7, "mkdirat", 34),
            (Architecture::Arm, 0x4000_0028, "mkdir", 39),
            (Architecture::Riscv64, 0xc000_00f3, "mkdirat", 34),
            (Architecture::S390x, 0x8000_0016, "mkdir", 39),
            (Architecture::Ppc64le, 0xc000_0015, "mkdir", 39),
        ] {
            assert_eq!(architecture.audit(), audit);
            assert_eq!(number(name_of, architecture), Some(expected), "{architecture:?}");
            assert_eq!(name(audit, expected).as_deref(), Some(name_of), "{architecture:?}");
            assert_eq!(Architecture::of(audit, expected), Some(architecture));
            let spelled = serde_json::to_value(architecture).unwrap();
            assert_eq!(spelled.as_str(), Some(architecture.as_str()));
        }
    }

    #[test]
    fn what_is_not_known_is_none() {
        assert_eq!(number("mkdir", Architecture::Aarch64), None);
        assert_eq!(number("frobnicate", Architecture::X86_64), None);
        assert_eq!(number("mkdir\0", Architecture::X86_64), None);
        assert_eq!(name(0xc000_003e, 999_999), None);
        assert_eq!(name(0xdead_beef, 1), None);
        assert_eq!(name(0xc000_003e, -1), None);
    }

    #[test]
    fn errnos_by_name_and_number() {
        assert_eq!(errno_number("EPERM"), Some(1));
        assert_eq!(errno_number("ENOSYS"), Some(38));
        assert_eq!(errno_number("133"), Some(133));
        assert_eq!(errno_name(38).as_deref(), Some("ENOSYS"));
        for wrong in ["", "0", "-1", "4096", "eperm", "UnknownErrno", "EPERM "] {
            assert_eq!(errno_number(wrong), None, "{wrong}");
        }
    }
}
