//! Users of a container: names are looked up in its own `/etc/passwd` and `/etc/group`.

use crate::failure::Failure;
use crate::helper::root::Root;

/// Most bytes of a user database that are read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Most supplementary groups of a process (the kernel's NGROUPS_MAX is 65536).
const MAX_GROUPS: usize = 1024;

/// Who a process is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory, if the user database knows one.
    pub home: Option<String>,
}

/// The container's user databases.
pub struct Users {
    passwd: String,
    group: String,
}

impl Users {
    /// Reads both files; one that is missing is empty.
    pub fn read(root: &Root) -> Result<Self, Failure> {
        let text = |path| {
            let content = root.read(path, MAX_FILE_BYTES)?.unwrap_or_default();
            Ok::<_, Failure>(String::from_utf8_lossy(&content).into_owned())
        };
        Ok(Self { passwd: text("/etc/passwd")?, group: text("/etc/group")? })
    }

    /// Looks up "name", "uid", "name:group", "uid:gid" and the like, by Docker's rules: a name must exist, a number need
    /// not; with a group given, supplementary groups don't count.
    pub fn look_up(&self, wanted: &str) -> Result<Identity, Failure> {
        let (user, group) = match wanted.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (wanted, None),
        };
        let number = user.parse::<u32>().ok();
        let entry = self.entries().find(|entry| match number {
            Some(uid) => entry.uid == uid || entry.name == user,
            None => entry.name == user,
        });
        let mut identity = match (&entry, number) {
            (Some(entry), _) => {
                Identity { uid: entry.uid, gid: entry.gid, groups: Vec::new(), home: Some(entry.home.to_string()) }
            }
            (None, Some(uid)) => Identity { uid, ..Identity::default() },
            (None, None) => {
                return Err(Failure::invalid(format!(
                    "unable to find user {user}: no matching entries in passwd file"
                )));
            }
        };
        match (group, &entry) {
            (Some(group), _) => identity.gid = self.group_id(group)?,
            (None, Some(entry)) => identity.groups = self.groups_of(entry.name),
            (None, None) => {}
        }
        Ok(identity)
    }

    /// Home directory of a user by number.
    pub fn home(&self, uid: u32) -> Option<&str> {
        self.entries().find(|entry| entry.uid == uid).map(|entry| entry.home)
    }

    fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.passwd.lines().filter_map(Entry::parse)
    }

    fn group_id(&self, group: &str) -> Result<u32, Failure> {
        let number = group.parse::<u32>().ok();
        let known = self.group.lines().filter_map(parse_group).find(|(name, _, _)| *name == group);
        known
            .map(|(_, gid, _)| gid)
            .or(number)
            .ok_or_else(|| Failure::invalid(format!("unable to find group {group}: no matching entries in group file")))
    }

    fn groups_of(&self, user: &str) -> Vec<u32> {
        self.group
            .lines()
            .filter_map(parse_group)
            .filter(|(_, _, members)| members.split(',').any(|member| member == user))
            .map(|(_, gid, _)| gid)
            .take(MAX_GROUPS)
            .collect()
    }
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Entry<'a> {
    /// `name:password:uid:gid:comment:home:shell`
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).filter(|home| !home.is_empty()).unwrap_or("/");
        Some(Self { name, uid, gid, home })
    }
}

/// `name:password:gid:member,member`
fn parse_group(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let gid = fields.nth(1)?.parse().ok()?;
    Some((name, gid, fields.next().unwrap_or("")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn users() -> Users {
        Users {
            passwd: "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\nwww:x:33:33:www:/var/www:/bin/false\n\
                     app:x:1000:1001::/home/app:/bin/sh\n77:x:5000:5000::/x:\n"
                .into(),
            group: "root:x:0:\nadm:x:4:app,www\nwww:x:33:\nstaff:x:50:app\nbad:x:no:app\n".into(),
        }
    }

    fn ids(wanted: &str) -> (u32, u32, Vec<u32>) {
        let identity = users().look_up(wanted).expect(wanted);
        (identity.uid, identity.gid, identity.groups)
    }

    #[test]
    fn names_and_numbers_follow_dockers_rules() {
        assert_eq!(ids("root"), (0, 0, vec![]));
        assert_eq!(ids("app"), (1000, 1001, vec![4, 50]));
        assert_eq!(ids("1000"), (1000, 1001, vec![4, 50]));
        assert_eq!(ids("app:www"), (1000, 33, vec![]));
        assert_eq!(ids("app:7"), (1000, 7, vec![]));
        assert_eq!(ids("4242"), (4242, 0, vec![]));
        assert_eq!(ids("4242:4343"), (4242, 4343, vec![]));
        assert_eq!(ids("app:"), (1000, 1001, vec![4, 50]));
    }

    #[test]
    fn unknown_names_are_wrong_requests_and_no_missing_commands() {
        for wanted in ["nobody", "app:nogroup", "-1", "4294967296", "broken"] {
            let failure = users().look_up(wanted).expect_err(wanted);
            assert_eq!(failure.code, ttrpc::Code::INVALID_ARGUMENT, "{wanted}");
        }
    }

    #[test]
    fn homes_come_from_the_database() {
        assert_eq!(users().look_up("app").expect("app").home.as_deref(), Some("/home/app"));
        assert_eq!(users().look_up("4242").expect("number").home, None);
        assert_eq!(users().home(33), Some("/var/www"));
    }

    proptest! {
        #[test]
        fn hostile_databases_neither_panic_nor_grow(
            passwd in "[a-z0-9:,\\-\n]{0,400}", group in "[a-z0-9:,\n]{0,400}", wanted in "[a-z0-9:]{0,20}"
        ) {
            if let Ok(identity) = (Users { passwd, group }).look_up(&wanted) {
                prop_assert!(identity.groups.len() <= MAX_GROUPS);
            }
        }
    }
}
