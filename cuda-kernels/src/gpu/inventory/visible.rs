//! Which of a machine's GPUs CUDA shows to a process.

use std::fmt::{self, Display, Formatter};

/// The variable that hides GPUs from CUDA.
const VARIABLE: &str = "CUDA_VISIBLE_DEVICES";

/// What `CUDA_VISIBLE_DEVICES` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Visible {
    /// It is not set.
    All,
    /// These, in this order, up to the first that is none.
    Listed(Vec<Entry>),
}

/// One entry of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A GPU's number.
    Number(usize),
    /// The beginning of a UUID, `GPU-...`, of which there must be one.
    Uuid(String),
    /// A slice of a GPU, `MIG-...`.
    Slice(String),
    /// Anything else, -1 for one: the list ends before it.
    End,
}

impl Visible {
    /// From the variable's value, where it is set.
    pub fn parse(value: Option<&str>) -> Self {
        let Some(value) = value else { return Self::All };
        Self::Listed(value.split(',').map(|entry| Entry::parse(entry.trim())).collect())
    }

    /// How many GPUs CUDA shows of a machine that has these. Slices are taken as they are listed.
    pub fn count(&self, installed: &[&str]) -> usize {
        let Self::Listed(entries) = self else { return installed.len() };
        let mut seen: Vec<Entry> = Vec::new();
        for entry in entries {
            let Some(found) = entry.find(installed) else { break };
            // What is listed twice ends the list, too.
            if seen.contains(&found) {
                break;
            }
            seen.push(found);
        }
        seen.len()
    }
}

impl Entry {
    fn parse(entry: &str) -> Self {
        if entry.starts_with("GPU-") {
            Self::Uuid(entry.to_owned())
        } else if entry.starts_with("MIG-") {
            Self::Slice(entry.to_owned())
        } else {
            entry.parse().map_or(Self::End, Self::Number)
        }
    }

    /// The one that is meant: a GPU by its number, or a slice.
    fn find(&self, installed: &[&str]) -> Option<Self> {
        match self {
            Self::Number(number) => (*number < installed.len()).then_some(Self::Number(*number)),
            Self::Uuid(beginning) => {
                let mut matching = (0..installed.len()).filter(|&i| installed[i].starts_with(beginning));
                let first = matching.next()?;
                matching.next().is_none().then_some(Self::Number(first))
            }
            Self::Slice(_) => Some(self.clone()),
            Self::End => None,
        }
    }
}

/// How many GPUs there are, and how many of them CUDA shows. It prints as `8 installed, 1 visible (CUDA_VISIBLE_DEVICES=3)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visibility {
    /// GPUs of the machine.
    pub installed: usize,
    /// GPUs (or slices of one) that CUDA shows to this process.
    pub visible: usize,
    /// What `CUDA_VISIBLE_DEVICES` is set to, where it is.
    pub variable: Option<String>,
}

impl Visibility {
    /// Of this process, on a machine with these UUIDs.
    pub(super) fn of_this_process(installed: &[&str]) -> Self {
        Self::new(installed, std::env::var_os(VARIABLE).map(|value| value.to_string_lossy().into_owned()))
    }

    fn new(installed: &[&str], variable: Option<String>) -> Self {
        let visible = Visible::parse(variable.as_deref()).count(installed);
        Self { installed: installed.len(), visible, variable }
    }
}

impl Display for Visibility {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} installed, {} visible", self.installed, self.visible)?;
        match self.variable.as_deref() {
            None => Ok(()),
            Some("") => write!(f, " ({VARIABLE} is empty)"),
            Some(value) => write!(f, " ({VARIABLE}={value})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSTALLED: [&str; 4] = [
        "GPU-11111111-aaaa-0000-0000-000000000000",
        "GPU-11112222-aaaa-0000-0000-000000000000",
        "GPU-33333333-aaaa-0000-0000-000000000000",
        "GPU-44444444-aaaa-0000-0000-000000000000",
    ];

    fn count(value: &str) -> usize {
        Visible::parse(Some(value)).count(&INSTALLED)
    }

    #[test]
    fn without_the_variable_all_are_visible() {
        assert_eq!(Visible::parse(None), Visible::All);
        assert_eq!(Visible::parse(None).count(&INSTALLED), 4);
    }

    #[test]
    fn numbers_count_up_to_the_first_that_there_is_none_of() {
        assert_eq!(count("3"), 1);
        assert_eq!(count("2,0"), 2);
        assert_eq!(count(" 1 , 2 "), 2);
        assert_eq!(count("0,4,1"), 1);
        assert_eq!(count("0,-1,1"), 1);
        assert_eq!(count("99999999999999999999999"), 0);
    }

    #[test]
    fn empty_and_minus_one_show_none() {
        for value in ["", "-1", ",", "none", "NoDevFiles"] {
            assert_eq!(count(value), 0, "{value:?}");
        }
    }

    #[test]
    fn uuids_may_be_cut_as_long_as_one_is_meant() {
        assert_eq!(count("GPU-33333333-aaaa-0000-0000-000000000000"), 1);
        assert_eq!(count("GPU-3"), 1);
        assert_eq!(count("GPU-1111"), 0, "two begin so");
        assert_eq!(count("GPU-11112,GPU-44"), 2);
        assert_eq!(count("GPU-5,0"), 0);
        assert_eq!(count("33333333"), 0);
    }

    #[test]
    fn slices_are_taken_as_listed() {
        assert_eq!(count("MIG-0ddc0ffe-0000-0000-0000-000000000000"), 1);
        assert_eq!(count("MIG-GPU-33333333/1/0"), 1);
    }

    #[test]
    fn what_is_listed_twice_ends_the_list() {
        assert_eq!(count("0,1,0,2"), 2);
        assert_eq!(count("2,GPU-3,0"), 1);
    }

    #[test]
    fn it_reads_as_a_sentence() {
        let eight = ["GPU-a"; 8];
        let sentence = |value: Option<&str>| Visibility::new(&eight, value.map(str::to_owned)).to_string();
        assert_eq!(sentence(Some("3")), "8 installed, 1 visible (CUDA_VISIBLE_DEVICES=3)");
        assert_eq!(sentence(Some("")), "8 installed, 0 visible (CUDA_VISIBLE_DEVICES is empty)");
        assert_eq!(sentence(None), "8 installed, 8 visible");
    }
}
