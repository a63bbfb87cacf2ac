//! seccomp: limits the system calls. All that are not listed fail with EPERM, among them those that
//! load or run programs, trace, mount, or reach into the kernel or other processes.
//!
//! The lists are what `strace` shows of `edge` in all its modes (files, pipes, cameras, page,
//! collection, service, reload; glibc and musl), and what the C libraries may call in the same
//! functions. `tests/tests/e2e/live.rs` runs these modes in the sandbox.

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn restrict(_: &super::Needs) -> anyhow::Result<()> {
    anyhow::bail!(
        "not supported on this architecture; the systemd unit of the package has its own filter"
    )
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub use filter::restrict;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod filter {
    use std::collections::BTreeMap;

    use anyhow::Result;
    use libc::c_long;
    use seccompiler::SeccompCmpArgLen::Dword;
    use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
        apply_filter,
    };

    use super::super::Needs;

    macro_rules! calls {
        ($($name:ident),* $(,)?) => { &[$((stringify!($name), libc::$name)),*] };
    }

    type Calls = &'static [(&'static str, c_long)];

    /// Memory, threads, time, signals to itself, open files, file lookup.
    const ALWAYS: Calls = calls![
        SYS_brk,
        SYS_clock_getres,
        SYS_clock_gettime,
        SYS_clock_nanosleep,
        SYS_close,
        SYS_copy_file_range,
        SYS_dup,
        SYS_dup3,
        SYS_exit,
        SYS_exit_group,
        SYS_faccessat,
        SYS_faccessat2,
        SYS_fadvise64,
        SYS_fcntl,
        SYS_fdatasync,
        SYS_flock,
        SYS_fstat,
        SYS_fstatfs,
        SYS_fsync,
        SYS_futex,
        SYS_getcwd,
        SYS_getdents64,
        SYS_getegid,
        SYS_geteuid,
        SYS_getgid,
        SYS_getpid,
        SYS_getrandom,
        SYS_gettid,
        SYS_gettimeofday,
        SYS_getuid,
        SYS_lseek,
        SYS_madvise,
        SYS_membarrier,
        SYS_mremap,
        SYS_munmap,
        SYS_nanosleep,
        SYS_newfstatat,
        SYS_ppoll,
        SYS_pread64,
        SYS_preadv,
        SYS_pwrite64,
        SYS_read,
        SYS_readlinkat,
        SYS_readv,
        SYS_restart_syscall,
        SYS_rseq,
        SYS_rt_sigaction,
        SYS_rt_sigprocmask,
        SYS_rt_sigreturn,
        SYS_sched_getaffinity,
        SYS_sched_yield,
        SYS_sendfile,
        SYS_set_robust_list,
        SYS_sigaltstack,
        SYS_statx,
        SYS_write,
        SYS_writev,
    ];
    #[cfg(target_arch = "x86_64")]
    const ALWAYS_OLD: Calls =
        calls![SYS_access, SYS_lstat, SYS_poll, SYS_readlink, SYS_stat, SYS_time];
    #[cfg(not(target_arch = "x86_64"))]
    const ALWAYS_OLD: Calls = &[];

    /// With a writable directory.
    const WRITING: Calls = calls![
        SYS_fallocate,
        SYS_fchmod,
        SYS_ftruncate,
        SYS_linkat,
        SYS_mkdirat,
        SYS_renameat,
        SYS_renameat2,
        SYS_unlinkat,
    ];
    #[cfg(target_arch = "x86_64")]
    const WRITING_OLD: Calls = calls![SYS_link, SYS_mkdir, SYS_rename, SYS_unlink];
    #[cfg(not(target_arch = "x86_64"))]
    const WRITING_OLD: Calls = &[];

    /// With the page: tokio, and sockets that listen.
    const PAGE: Calls = calls![
        SYS_accept4,
        SYS_bind,
        SYS_epoll_create1,
        SYS_epoll_ctl,
        SYS_epoll_pwait,
        SYS_eventfd2,
        SYS_getpeername,
        SYS_getsockname,
        SYS_getsockopt,
        SYS_listen,
        SYS_recvfrom,
        SYS_recvmsg,
        SYS_sendmsg,
        SYS_sendto,
        SYS_setsockopt,
        SYS_shutdown,
    ];
    #[cfg(target_arch = "x86_64")]
    const PAGE_OLD: Calls = calls![SYS_epoll_wait];
    #[cfg(not(target_arch = "x86_64"))]
    const PAGE_OLD: Calls = &[];

    /// As a service: a datagram to systemd.
    const SERVICE: Calls = calls![SYS_connect, SYS_sendmsg, SYS_sendto];

    /// Calls that libraries try, and replace by others if the kernel does not support them: they
    /// take structures, which no filter can inspect.
    const UNKNOWN: Calls = calls![SYS_clone3, SYS_openat2];

    /// Commands to terminals and sockets: TCGETS, TCGETS2, TIOCGWINSZ, FIONBIO, FIOCLEX. The one
    /// that types into a terminal (TIOCSTI) is not among them.
    const IOCTLS: [u64; 5] = [0x5401, 0x802c_542a, 0x5413, 0x5421, 0x5451];
    /// `_IOC_TYPE` of the commands of V4L2.
    const V4L2: u64 = (b'V' as u64) << 8;

    /// Filters the calls of this thread.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn restrict(needs: &Needs) -> Result<()> {
        let unknown = UNKNOWN.iter().map(|&(_, call)| (call, Vec::new())).collect();
        let unknown =
            program(unknown, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))?;
        let allowed =
            program(rules(needs)?, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)?;
        // The kernel applies both, and the one that refuses wins. The second must not forbid the
        // call that installs the first, hence this order.
        apply_filter(&unknown)?;
        apply_filter(&allowed)?;
        Ok(())
    }

    fn program(
        rules: Rules,
        otherwise: SeccompAction,
        matched: SeccompAction,
    ) -> Result<BpfProgram> {
        let filter =
            SeccompFilter::new(rules, otherwise, matched, std::env::consts::ARCH.try_into()?)?;
        Ok(filter.try_into()?)
    }

    type Rules = BTreeMap<i64, Vec<SeccompRule>>;

    fn rules(needs: &Needs) -> Result<Rules> {
        let mut lists = vec![ALWAYS, ALWAYS_OLD, UNKNOWN];
        if !needs.write.is_empty() {
            lists.extend([WRITING, WRITING_OLD]);
        }
        if needs.port.is_some() {
            lists.extend([PAGE, PAGE_OLD]);
        }
        if needs.service {
            lists.push(SERVICE);
        }
        let mut rules: Rules =
            lists.concat().into_iter().map(|(_, call)| (call, Vec::new())).collect();
        let mut checked = |call: c_long, conditions: &[(u8, SeccompCmpOp, u64)]| -> Result<()> {
            let conditions: Result<Vec<_>, _> = conditions
                .iter()
                .map(|(index, op, value)| SeccompCondition::new(*index, Dword, op.clone(), *value))
                .collect();
            rules.entry(call).or_default().push(SeccompRule::new(conditions?)?);
            Ok(())
        };

        let thread = libc::CLONE_THREAD as u64;
        checked(libc::SYS_clone, &[(0, MaskedEq(thread), thread)])?;
        for call in [libc::SYS_mmap, libc::SYS_mprotect] {
            checked(call, &[(2, MaskedEq(libc::PROT_EXEC as u64), 0)])?;
        }
        checked(libc::SYS_prctl, &[(0, Eq, libc::PR_SET_NAME as u64)])?;
        // The calls by which a program aborts.
        let (own, abort) = (u64::from(std::process::id()), libc::SIGABRT as u64);
        checked(libc::SYS_tgkill, &[(0, Eq, own), (2, Eq, abort)])?;
        checked(libc::SYS_tkill, &[(1, Eq, abort)])?;
        for command in IOCTLS {
            checked(libc::SYS_ioctl, &[(1, Eq, command)])?;
        }
        if needs.cameras {
            checked(libc::SYS_ioctl, &[(1, MaskedEq(0xff00), V4L2)])?;
        }
        // Without writable directories, no file is opened for writing, landlock or not.
        let writing = if needs.write.is_empty() && !needs.cameras {
            (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) as u64
        } else {
            0
        };
        checked(libc::SYS_openat, &[(2, MaskedEq(writing), 0)])?;
        #[cfg(target_arch = "x86_64")]
        checked(libc::SYS_open, &[(1, MaskedEq(writing), 0)])?;
        let mut socket = |family: i32, kind: i32| {
            checked(libc::SYS_socket, &[(0, Eq, family as u64), (1, MaskedEq(0xf), kind as u64)])
        };
        if needs.port.is_some() {
            socket(libc::AF_INET, libc::SOCK_STREAM)?;
            socket(libc::AF_INET6, libc::SOCK_STREAM)?;
        }
        if needs.service {
            socket(libc::AF_UNIX, libc::SOCK_DGRAM)?;
        }
        Ok(rules)
    }

    #[cfg(test)]
    mod tests {
        use std::collections::BTreeSet;
        use std::process::Command;

        use super::*;

        /// Allowed with certain arguments only.
        const CHECKED: Calls = calls![
            SYS_clone,
            SYS_ioctl,
            SYS_mmap,
            SYS_mprotect,
            SYS_openat,
            SYS_prctl,
            SYS_socket,
            SYS_tgkill,
            SYS_tkill,
        ];
        #[cfg(target_arch = "x86_64")]
        const CHECKED_OLD: Calls = calls![SYS_open];
        #[cfg(not(target_arch = "x86_64"))]
        const CHECKED_OLD: Calls = &[];

        fn names() -> BTreeSet<&'static str> {
            let lists = [
                ALWAYS,
                ALWAYS_OLD,
                WRITING,
                WRITING_OLD,
                PAGE,
                PAGE_OLD,
                SERVICE,
                CHECKED,
                CHECKED_OLD,
                UNKNOWN,
            ];
            lists.concat().iter().map(|(name, _)| name.trim_start_matches("SYS_")).collect()
        }

        /// The groups of calls that systemd defines, by name.
        fn groups() -> BTreeMap<String, Vec<String>> {
            let output =
                Command::new("systemd-analyze").args(["syscall-filter", "--no-pager"]).output();
            let output = output.expect("systemd-analyze is there; run ./test, which installs it");
            let (mut groups, mut name) = (BTreeMap::<_, Vec<String>>::new(), String::new());
            for line in String::from_utf8(output.stdout).unwrap().lines() {
                match line.strip_prefix("    ") {
                    Some(word) => {
                        groups.entry(name.clone()).or_default().push(word.trim().to_owned())
                    }
                    None => line.trim().clone_into(&mut name),
                }
            }
            groups
        }

        fn expand(word: &str, groups: &BTreeMap<String, Vec<String>>) -> BTreeSet<String> {
            match word.strip_prefix('@') {
                None => BTreeSet::from([word.to_owned()]),
                Some(_) => groups[word].iter().flat_map(|word| expand(word, groups)).collect(),
            }
        }

        /// The filter of the unit must allow the calls of this one and those entering the sandbox.
        #[test]
        fn the_systemd_unit_allows_the_listed_calls_and_entering_the_sandbox() {
            let unit = include_str!("../../../packaging/vgg-edge.service");
            let (groups, mut allowed) = (groups(), BTreeSet::new());
            for line in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
                for word in line.trim_start_matches('~').split(' ') {
                    let calls = expand(word, &groups);
                    if line.starts_with('~') {
                        allowed.retain(|call| !calls.contains(call));
                    } else {
                        allowed.extend(calls);
                    }
                }
            }
            let entering = [
                "landlock_create_ruleset",
                "landlock_add_rule",
                "landlock_restrict_self",
                "seccomp",
            ];
            for call in names().into_iter().chain(entering) {
                assert!(allowed.contains(call), "{call} is not allowed by the unit");
            }
        }

        #[test]
        fn dangerous_system_calls_are_never_allowed() {
            let needs = Needs {
                write: vec!["/".into()],
                cameras: true,
                port: Some(0),
                service: true,
                ..Needs::default()
            };
            let rules = rules(&needs).unwrap();
            let dangerous = [
                libc::SYS_execve,
                libc::SYS_execveat,
                libc::SYS_ptrace,
                libc::SYS_mount,
                libc::SYS_umount2,
                libc::SYS_pivot_root,
                libc::SYS_chroot,
                libc::SYS_kexec_load,
                libc::SYS_bpf,
                libc::SYS_keyctl,
                libc::SYS_add_key,
                libc::SYS_request_key,
                libc::SYS_init_module,
                libc::SYS_finit_module,
                libc::SYS_delete_module,
                libc::SYS_process_vm_readv,
                libc::SYS_process_vm_writev,
                libc::SYS_perf_event_open,
                libc::SYS_io_uring_setup,
                libc::SYS_userfaultfd,
                libc::SYS_memfd_create,
                libc::SYS_unshare,
                libc::SYS_setns,
                libc::SYS_kill,
                libc::SYS_reboot,
                libc::SYS_setuid,
                libc::SYS_pkey_mprotect,
                libc::SYS_personality,
                libc::SYS_symlinkat,
                libc::SYS_mknodat,
                libc::SYS_open_by_handle_at,
                libc::SYS_name_to_handle_at,
            ];
            for call in dangerous {
                assert!(!rules.contains_key(&call), "{call}");
            }
            // Calls with checked arguments have conditions; without, they would always be allowed.
            for (name, call) in [CHECKED, CHECKED_OLD].concat() {
                assert!(rules.get(&call).is_some_and(|rules| !rules.is_empty()), "{name}");
            }
        }
    }
}
