// Every self-checking target goes through two cycles: what was restored is
// checkpointed again. The target itself says whether all is as it was.
import { capabilitySets, type Spec } from '../support/spec.js';
import { useTestBed, type TestBed } from '../support/test-bed.js';

interface Case {
  /** What is proved, as a sentence after "restores". */
  readonly what: string;
  readonly target: string;
  readonly adjust?: (spec: Spec) => void;
}

const cases: readonly Case[] = [
  { what: 'pipes with unread bytes', target: 'pipe_unread' },
  { what: 'descriptors shared after dup and fork', target: 'fd_shared' },
  { what: 'offsets and modes of regular files', target: 'file_offset' },
  { what: 'many descriptors without a gap', target: 'many_files' },
  { what: 'locks of files', target: 'file_locks' },
  { what: 'event counters', target: 'eventfd' },
  { what: 'epoll registrations', target: 'epoll' },
  { what: 'deleted files with their content, offsets, mappings and locks', target: 'deleted_file' },
  { what: 'inotify instances with their watches', target: 'inotify' },
  { what: 'unix socket pairs with queued data', target: 'unix_socketpair' },
  { what: 'listening TCP sockets', target: 'tcp_listen' },
  { what: 'TCP connections between its own sockets', target: 'tcp_loopback' },
  { what: 'interval timers', target: 'itimers' },
  { what: 'POSIX timers', target: 'posix_timers' },
  { what: 'signal actions, masks and the alternate stack', target: 'signal_actions' },
  { what: 'pending signals', target: 'signal_pending' },
  { what: 'threads with their own memory, locks and names', target: 'threads_tls' },
  { what: 'vector and floating point registers', target: 'fpu_state' },
  { what: 'private file mappings with changed pages', target: 'map_private_file' },
  { what: 'read-only shared file mappings', target: 'map_shared_readonly' },
  { what: 'the layout and content of memory', target: 'memory_layout' },
  { what: 'transparent huge pages', target: 'huge_pages' },
  { what: 'shared anonymous memory', target: 'shared_anonymous' },
  { what: 'memfds with their content, offsets, mappings and seals', target: 'memfd' },
  { what: 'sessions and process groups without leaders', target: 'sessions', adjust: withCapabilities('CAP_KILL') },
  { what: 'zombies', target: 'zombies' },
  {
    what: 'credentials and capabilities',
    target: 'credentials',
    adjust: withCapabilities(
      'CAP_SETUID',
      'CAP_SETGID',
      'CAP_SETPCAP',
      'CAP_KILL',
      'CAP_AUDIT_WRITE',
      'CAP_NET_BIND_SERVICE',
    ),
  },
  { what: 'seccomp filters per thread', target: 'seccomp' },
  { what: 'resource limits and scheduling', target: 'limits_scheduling', adjust: withCapabilities('CAP_SYS_NICE') },
  {
    what: 'name, command line, working directory and root',
    target: 'identity',
    adjust: withCapabilities('CAP_SYS_CHROOT'),
  },
  { what: 'System V shared memory', target: 'sysv_segments' },
  { what: 'System V semaphores', target: 'sysv_semaphores' },
  { what: 'the content of a tmpfs', target: 'tmpfs_content', adjust: withScratch },
  { what: 'restartable sequences', target: 'rseq' },
  { what: 'a stopped process', target: 'stopped_process' },
  { what: 'a deep and broad process tree', target: 'deep_tree' },
  { what: 'threads blocked in system calls', target: 'blocked_calls' },
  { what: 'character devices and clocks', target: 'devices_time' },
];

describe('a container', () => {
  const bed = useTestBed();
  for (const { what, target, adjust } of cases) it(`restores ${what}`, () => expectTwoCycles(bed, target, adjust));
});

// Where the root task of a restore has no privilege over the host: of shared memory that matters most.
describe('a container in a user namespace', () => {
  const bed = useTestBed();
  for (const target of [
    'tcp_loopback',
    'memory_layout',
    'shared_anonymous',
    'memfd',
    'deleted_file',
    'sysv_segments',
    'sysv_semaphores',
  ])
    it(`restores ${target}`, () => expectTwoCycles(bed, target, withUserNamespace));
});

async function expectTwoCycles(bed: TestBed, target: string, adjust?: (spec: Spec) => void): Promise<void> {
  const container = await bed.start({
    args: [`/targets/${target}`],
    targets: [target],
    adjust: (spec) => {
      delete spec.process.rlimits;
      adjust?.(spec);
    },
  });
  await container.waitForOutput(/READY|FAIL.*/);
  await container.cycle(2);
  await container.expectOk();
}

function withUserNamespace(spec: Spec): void {
  const ids = [{ containerID: 0, hostID: 100_000, size: 65_536 }];
  spec.linux.namespaces.push({ type: 'user' });
  spec.linux.uidMappings = ids;
  spec.linux.gidMappings = ids;
}

function withCapabilities(...names: string[]): (spec: Spec) => void {
  return (spec) => {
    spec.process.capabilities = capabilitySets(names);
    spec.process.noNewPrivileges = false;
  };
}

function withScratch(spec: Spec): void {
  spec.process.capabilities = capabilitySets(['CAP_CHOWN', 'CAP_FSETID', 'CAP_FOWNER']);
  spec.mounts.push({
    destination: '/scratch',
    type: 'tmpfs',
    source: 'tmpfs',
    options: ['nosuid', 'noexec', 'size=16384k'],
  });
}
