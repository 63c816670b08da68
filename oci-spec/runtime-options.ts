// The flags of runc's checkpoint and restore verbs, of all versions in use,
// plus those that managers pass although runc never had them. One table: what
// is parsed, what help says, and what is refused because it is not built.

export interface RuntimeOption {
  readonly name: string;
  readonly alias?: string;
  readonly type: 'boolean' | 'string' | 'list';
  readonly describe: string;
  /** Why a value given here is refused; undefined: it has an effect, or is known to need none. */
  readonly refused?: string;
  /** Known values, if only some are accepted; "" is always one of them. */
  readonly values?: readonly string[];
  /** It may be given alone, and is "" then: of the words after it, only these are its value. */
  readonly optionalValue?: RegExp;
  /** What there is, where a list of `values` does not say it. */
  readonly known?: string;
}

export const globalOptions: readonly RuntimeOption[] = [
  {
    name: 'root',
    type: 'string',
    describe: 'directory of container state (default "/run/runc", or "/run/crun" where crun is the base runtime)',
  },
  { name: 'log', type: 'string', describe: 'file that errors are appended to' },
  { name: 'log-format', type: 'string', describe: 'format of that file: text or json', values: ['text', 'json'] },
  { name: 'log-level', type: 'string', describe: "accepted for crun's sake; errors and warnings are always logged" },
  { name: 'debug', type: 'boolean', describe: 'say more about failures' },
  { name: 'systemd-cgroup', type: 'boolean', describe: 'cgroupsPath is "slice:prefix:name"' },
  { name: 'rootless', type: 'string', describe: "accepted for runc's sake; checkpoint and restore need root" },
  { name: 'criu', type: 'string', describe: "accepted for runc 1.1's sake; there is no criu program here" },
  { name: 'cgroup-manager', type: 'string', describe: "accepted for crun's sake" },
];

const dedup =
  'a parent without its pages no longer matches the digests by which it is trusted, and a kill in between would leave nothing that can be restored; to save room use --compress, or begin anew without --parent-path and remove the older checkpoints';
const remotePages = 'serving pages over a network is not built yet; write the images to a shared directory';
const lazyCheckpoint =
  'serving pages from the checkpointed container is not built yet; checkpoint without it, and restore with --lazy-pages';

const shared: readonly RuntimeOption[] = [
  { name: 'image-path', type: 'string', describe: 'directory of the images (default "<cwd>/checkpoint")' },
  { name: 'work-path', type: 'string', describe: 'directory of log and statistics (default: that of the images)' },
  { name: 'tcp-established', type: 'boolean', describe: 'carry TCP connections to outside' },
  { name: 'ext-unix-sk', type: 'boolean', describe: 'allow unix sockets with a peer outside' },
  { name: 'shell-job', type: 'boolean', describe: 'allow a session that belongs to a shell outside' },
  { name: 'file-locks', type: 'boolean', describe: 'allow file locks' },
  {
    name: 'manage-cgroups-mode',
    type: 'string',
    describe: 'cgroup properties come from config.json: soft or ignore',
    values: ['soft', 'ignore'],
  },
  {
    name: 'empty-ns',
    type: 'list',
    describe: 'namespace whose content is left out; "network" always is',
    values: ['network'],
  },
  {
    name: 'progress',
    type: 'string',
    describe: 'json: say on standard error how far the work has come, one object a line',
    values: ['json'],
  },
  { name: 'auto-dedup', type: 'boolean', describe: 'drop duplicates in parent images', refused: dedup },
];

const ignoreRootfs: RuntimeOption = {
  name: 'ignore-rootfs',
  type: 'boolean',
  describe: 'with --archive: leave the changed files of the root file system alone',
};

export const checkpointOptions: readonly RuntimeOption[] = [
  ...shared,
  {
    name: 'archive',
    type: 'string',
    describe: 'write one file instead of a directory: .tar, .tar.zst, .tar.gz; "-" is standard output',
  },
  {
    name: 'compress',
    type: 'string',
    describe:
      'page files: lz4 or zstd[:LEVEL], written as they are compressed (alone: lz4); with --archive, of the archive: none, gzip or zstd (default: as the name says)',
    values: ['none', 'gzip', 'lz4', 'zstd'],
    optionalValue: /^(none|gzip|lz4|zstd(:\d+)?)$/,
    known: 'lz4, zstd and zstd:1 to zstd:19 for page files, and none, gzip and zstd with --archive',
  },
  { name: 'lower', type: 'string', describe: 'with --archive: what the root file system was, if it is no overlay' },
  { name: 'image', type: 'string', describe: 'with --archive: name of the image that the container was made from' },
  ignoreRootfs,
  { name: 'lazy-pages', type: 'boolean', describe: 'send memory on demand later', refused: lazyCheckpoint },
  {
    name: 'parent-path',
    type: 'string',
    describe: 'images of an earlier pre-dump or checkpoint, relative to --image-path: only what has changed is written',
  },
  { name: 'pre-dump', type: 'boolean', describe: 'write memory only, for a later checkpoint; the container runs on' },
  {
    name: 'iterate',
    type: 'boolean',
    describe: 'make pre-dumps until little is left to write, then the checkpoint; their images lie in its directory',
  },
  { name: 'leave-running', type: 'boolean', describe: 'let the container run on' },
  { name: 'tcp-skip-in-flight', type: 'boolean', describe: 'leave out TCP connections that are not established yet' },
  { name: 'link-remap', type: 'boolean', describe: 'allow open files without a name' },
  {
    name: 'status-fd',
    type: 'string',
    describe: 'descriptor that is told when lazy pages can be served; unused without --lazy-pages',
  },
  { name: 'page-server', type: 'string', describe: 'ADDRESS:PORT that memory is sent to', refused: remotePages },
  { name: 'no-fsync', type: 'boolean', describe: 'do not wait until the images are on the disk' },
  {
    name: 'direct-io',
    type: 'boolean',
    describe: 'write page files past the page cache, where the file system can; what others have in it stays there',
  },
  { name: 'json', type: 'boolean', describe: 'print the result as JSON: sizes, degradations, time per phase' },
];

export const restoreOptions: readonly RuntimeOption[] = [
  ...shared,
  { name: 'json', type: 'boolean', describe: 'with --detach: print the result as JSON: pid, time per phase' },
  { name: 'archive', type: 'string', describe: 'restore from this archive, of whatever manager' },
  { name: 'max-bytes', type: 'string', describe: 'with --archive: refuse one that unpacks to more' },
  ignoreRootfs,
  { name: 'bundle', alias: 'b', type: 'string', describe: 'directory of config.json (default: the working directory)' },
  { name: 'lazy-pages', type: 'boolean', describe: 'fill private memory while the container runs already' },
  { name: 'detach', alias: 'd', type: 'boolean', describe: 'return as soon as the container runs' },
  { name: 'prepare', type: 'boolean', describe: 'restore, but leave it waiting for "start"; implies --detach' },
  { name: 'pid-file', type: 'string', describe: 'file that the pid of init is written to' },
  {
    name: 'console-socket',
    type: 'string',
    describe: 'listening unix socket that the master of the terminal is sent to; with --detach',
  },
  { name: 'no-subreaper', type: 'boolean', describe: 'do not become the parent of orphans' },
  { name: 'no-pivot', type: 'boolean', describe: 'noted in the state of the container' },
  { name: 'no-new-keyring', type: 'boolean', describe: 'noted in the state of the container' },
  { name: 'preserve-fds', type: 'string', describe: "accepted for conmon's sake: descriptors come from the images" },
  {
    name: 'tcp-close',
    type: 'boolean',
    describe: 'TCP connections are restored as closed ones',
  },
  {
    name: 'lsm-profile',
    type: 'string',
    describe: 'security label of the processes',
    refused: 'changing security labels is not built yet',
  },
  {
    name: 'lsm-mount-context',
    type: 'string',
    describe: 'security label of the mounts',
    refused: 'changing security labels is not built yet',
  },
];

/** Of a `create` that turns out to be a restore: what runc and crun know. */
export const createOptions: readonly RuntimeOption[] = [
  { name: 'bundle', alias: 'b', type: 'string', describe: 'directory of config.json (default: the working directory)' },
  { name: 'pid-file', type: 'string', describe: 'file that the pid of init is written to' },
  {
    name: 'console-socket',
    type: 'string',
    describe: 'listening unix socket that the master of the terminal is sent to',
  },
  { name: 'no-subreaper', type: 'boolean', describe: "accepted for crun's sake" },
  { name: 'no-pivot', type: 'boolean', describe: 'noted in the state of the container' },
  { name: 'no-new-keyring', type: 'boolean', describe: 'noted in the state of the container' },
  { name: 'preserve-fds', type: 'string', describe: "accepted for conmon's sake: descriptors come from the images" },
  { name: 'pidfd-socket', type: 'string', describe: 'a pidfd of init to this socket', refused: 'it is not built yet' },
];
