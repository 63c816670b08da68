// CRIU's options, as fields of its own request: the command line and the remote
// procedure calls then mean the same. An option that is missing here is refused
// by name, one whose field is not built by whoever reads the request.
import { isAbsolute, relative, resolve } from 'node:path';
import { criu_cg_mode } from '../../oci-spec/images/messages.js';
import { kCloneNewNet, type RpcDirectories } from '../../runtime-shim/rpc/options.js';
import type { RequestedOptions } from '../../runtime-shim/rpc/packets.js';
import { usage } from '../arguments.js';

type Draft = { -readonly [Name in keyof RequestedOptions]: RequestedOptions[Name] };

/** What the command line asks for besides the request. */
interface Surroundings {
  imagesDirectory: string;
  workDirectory?: string;
  logFile?: string;
  pidFile?: string;
  detached: boolean;
  /** Configuration file in place of the usual ones, "" for none; undefined: those. */
  configuration?: string;
  features: string[];
  help: boolean;
  version: boolean;
}

interface Option {
  readonly name: string;
  /** One letter. */
  readonly alias?: string;
  readonly describe: string;
  /** Name of the value; undefined: the option takes none, and "--no-NAME" takes it back. */
  readonly value?: string;
  /** The value may only be given in the same word: "--name=value", "-nvalue". */
  readonly optionalValue?: true;
  apply(draft: Draft, value: string, around: Surroundings): void;
}

export interface CommandLine {
  readonly positionals: readonly string[];
  readonly options: RequestedOptions;
  readonly around: Readonly<Surroundings>;
}

type Switches = {
  [Name in keyof RequestedOptions]-?: boolean extends RequestedOptions[Name] ? Name : never;
}[keyof RequestedOptions];

const flag = (name: string, field: Switches, describe: string, alias?: string): Option => ({
  name,
  describe,
  ...(alias === undefined ? {} : { alias }),
  apply: (draft, value) => void (draft[field] = value !== 'no'),
});

/** What is done anyway, or what nothing here depends on. */
const known = (name: string, describe: string, more: Partial<Option> = {}): Option => ({
  name,
  describe,
  apply: () => undefined,
  ...more,
});

const table: readonly Option[] = [
  {
    name: 'tree',
    alias: 't',
    value: 'PID',
    describe: 'root of the tree',
    apply: (draft, value) => void (draft.pid = wholeNumber('tree', value, 1)),
  },
  {
    name: 'images-dir',
    alias: 'D',
    value: 'DIR',
    describe: 'directory of the images (default: the current one)',
    apply: (_draft, value, around) => void (around.imagesDirectory = value),
  },
  {
    name: 'work-dir',
    alias: 'W',
    value: 'DIR',
    describe: "directory of log and statistics (default: the images')",
    apply: (_draft, value, around) => void (around.workDirectory = value),
  },
  {
    name: 'prev-images-dir',
    value: 'DIR',
    describe: 'images that unchanged memory is left to, relative to --images-dir',
    apply: (draft, value) => void (draft.parent_img = value),
  },
  flag('track-mem', 'track_mem', 'keep note of what changes, for a later dump'),
  {
    name: 'log-file',
    alias: 'o',
    value: 'FILE',
    describe: 'name of the log, relative to --work-dir',
    apply: (_draft, value, around) => void (around.logFile = value),
  },
  known('verbosity', 'accepted: the log always tells everything', { alias: 'v', value: 'N', optionalValue: true }),
  flag('leave-running', 'leave_running', 'let the tree run on', 'R'),
  flag('leave-stopped', 'leave_stopped', 'leave the tree stopped (refused)', 's'),
  {
    name: 'restore-detached',
    alias: 'd',
    describe: 'return as soon as the tree runs',
    apply: (_draft, value, around) => void (around.detached = value !== 'no'),
  },
  {
    name: 'pidfile',
    value: 'FILE',
    describe: 'file for the pid of the restored root, relative to --work-dir; it must not exist',
    apply: (_draft, value, around) => void (around.pidFile = value),
  },
  flag('shell-job', 'shell_job', 'the session belongs to a shell outside', 'j'),
  known('ghost-limit', 'accepted: deleted files of any size are carried', { value: 'BYTES' }),
  flag('file-locks', 'file_locks', 'allow file locks', 'l'),
  flag('tcp-established', 'tcp_established', 'carry TCP connections to outside'),
  flag('tcp-close', 'tcp_close', 'restore TCP connections as closed ones'),
  {
    name: 'ext-unix-sk',
    alias: 'x',
    value: 'INODES',
    optionalValue: true,
    describe: 'allow unix sockets with a peer outside',
    apply: (draft) => void (draft.ext_unix_sk = true),
  },
  {
    name: 'external',
    value: 'KIND[ID]:KEY',
    describe: 'something that is not saved, but given at the restore',
    apply: (draft, value) => append(draft, 'external', value),
  },
  {
    name: 'ext-mount-map',
    alias: 'M',
    value: 'KEY:VALUE',
    describe: 'the same for a mount, as older releases of CRIU have it',
    apply: (draft, value) => {
      if (value === 'auto') throw usage('cannot use --ext-mount-map auto: only KEY:VALUE is built');
      const [key, val] = splitOnce(value, ':');
      append(draft, 'ext_mnt', { key, val: val ?? key });
    },
  },
  {
    name: 'inherit-fd',
    value: 'fd[N]:KEY',
    describe: 'descriptor of ours that takes the place of something external',
    apply: (draft, value) => {
      const parts = /^fd\[(\d+)\]:(.+)$/s.exec(value);
      if (parts === null) throw usage(`cannot use --inherit-fd ${value}: it is not fd[N]:KEY`);
      append(draft, 'inherit_fd', { fd: Number(parts[1]), key: parts[2]! });
    },
  },
  {
    name: 'root',
    alias: 'r',
    value: 'DIR',
    describe: 'root file system of a restored mount namespace',
    apply: (draft, value) => void (draft.root = resolve(value)),
  },
  {
    name: 'empty-ns',
    value: 'net',
    describe: 'the namespace is made, its content is not saved or restored',
    apply: (draft, value) => {
      if (value !== 'net') throw usage(`cannot use --empty-ns ${value}: only net is built`);
      draft.empty_ns = kCloneNewNet;
    },
  },
  {
    name: 'join-ns',
    alias: 'J',
    value: 'NS:PID|FILE',
    describe: 'enter a namespace that exists',
    apply: (draft, value) => {
      const [ns, file] = splitOnce(value, ':');
      if (file === undefined) throw usage(`cannot use --join-ns ${value}: it is not NAMESPACE:PID or NAMESPACE:FILE`);
      append(draft, 'join_ns', { ns, ns_file: file });
    },
  },
  {
    name: 'freeze-cgroup',
    value: 'DIR',
    describe: 'cgroup that holds the tree',
    apply: (draft, value) => void (draft.freeze_cgroup = value),
  },
  {
    name: 'manage-cgroups',
    value: 'MODE',
    optionalValue: true,
    describe: 'soft (the default) or ignore',
    apply: (draft, value) => void (draft.manage_cgroups_mode = cgroupMode(value)),
  },
  {
    name: 'cgroup-root',
    value: '[CONTROLLER:]PATH',
    describe: 'where a restored tree belongs',
    apply: (draft, value) => {
      const [ctrl, path] = value.startsWith('/') ? ['', value] : splitOnce(value, ':');
      if (path === undefined) throw usage(`cannot use --cgroup-root ${value}: it is not [CONTROLLER:]PATH`);
      append(draft, 'cg_root', { ctrl, path });
    },
  },
  {
    name: 'timeout',
    value: 'SECONDS',
    describe: 'how long the tree may be frozen until everything but memory is read (default 10)',
    apply: (draft, value) => void (draft.timeout = wholeNumber('timeout', value, 0)),
  },
  flag('lazy-pages', 'lazy_pages', 'serve memory later (refused)'),
  flag('auto-dedup', 'auto_dedup', 'remove pages that are overridden from earlier images (refused)'),
  {
    name: 'page-server',
    describe: 'send pages over a network (refused)',
    apply: (draft, value) => void (value !== 'no' && (draft.ps = {})),
  },
  {
    name: 'lsm-profile',
    value: 'TYPE:NAME',
    describe: 'security label of the restored tree (refused)',
    apply: (draft, value) => void (draft.lsm_profile = value),
  },
  {
    name: 'lsm-mount-context',
    value: 'CONTEXT',
    describe: 'security context of restored mounts (refused)',
    apply: (draft, value) => void (draft.lsm_mount_context = value),
  },
  {
    name: 'feature',
    value: 'NAME',
    describe: 'check: whether it is there',
    apply: (_draft, value, around) => void around.features.push(value),
  },
  known('all', 'check: accepted, everything is checked'),
  known('extra', 'check: accepted, everything is checked'),
  known('experimental', 'check: accepted, everything is checked'),
  {
    name: 'config',
    value: 'FILE',
    describe: "options from this file, and not from the system's and the user's own",
    apply: (_draft, value, around) => void (around.configuration = value),
  },
  {
    name: 'no-default-config',
    describe: 'read no configuration files',
    apply: (_draft, _value, around) => void (around.configuration = ''),
  },
  known('evasive-devices', 'accepted: devices are found by their numbers'),
  known('skip-in-flight', 'accepted: connections that nobody has accepted yet are not carried'),
  known('network-lock', 'accepted: what locks the network is chosen here', { value: 'METHOD' }),
  {
    name: 'version',
    alias: 'V',
    describe: 'show the version',
    apply: (_draft, _value, around) => void (around.version = true),
  },
  {
    name: 'help',
    alias: 'h',
    describe: 'show this',
    apply: (_draft, _value, around) => void (around.help = true),
  },
];

/**
 * getopt_long's rules: "-D dir", "-Ddir", "--images-dir dir", "--images-dir=dir", "-Rj", options before and after
 * the action. Throws USAGE.
 */
export function parseCommandLine(words: readonly string[]): CommandLine {
  const options: Draft = { images_dir_fd: -1 };
  const around: Surroundings = { imagesDirectory: '.', detached: false, features: [], help: false, version: false };
  const positionals: string[] = [];
  const queue = [...words];
  for (let word = queue.shift(); word !== undefined; word = queue.shift()) {
    if (word === '--') {
      positionals.push(...queue);
      break;
    }
    if (!word.startsWith('-') || word === '-') {
      positionals.push(word);
      continue;
    }
    const { option, negated, inline } = recognise(word);
    if (option.value === undefined) {
      if (word.startsWith('--') && inline !== undefined)
        throw usage(`cannot use ${word}: the option --${option.name} takes no value`);
      option.apply(options, negated ? 'no' : '', around);
      if (inline !== undefined) queue.unshift(`-${inline}`);
      continue;
    }
    const value = inline ?? (option.optionalValue === true ? '' : queue.shift());
    if (value === undefined) throw usage(`cannot use ${word}: the option needs a value`);
    option.apply(options, value, around);
  }
  return { positionals, options, around };
}

function recognise(word: string): { readonly option: Option; readonly negated: boolean; readonly inline?: string } {
  const long = word.startsWith('--');
  const [name, inline] = long ? splitOnce(word.slice(2), '=') : [word[1]!, word.length > 2 ? word.slice(2) : undefined];
  const named = (wanted: string): Option | undefined =>
    table.find((one) => (long ? one.name === wanted : one.alias === wanted));
  const plain = named(name);
  const positive = plain ?? (long && name.startsWith('no-') ? named(name.slice(3)) : undefined);
  if (positive === undefined || (plain === undefined && positive.value !== undefined))
    throw usage(`cannot use ${long ? `--${name}` : `-${name}`}: this option is not built yet`);
  return { option: positive, negated: plain === undefined, ...(inline === undefined ? {} : { inline }) };
}

/** Absolute paths; the log's name is relative to the work directory. */
export function directoriesOf(around: Readonly<Surroundings>, defaultLog: string): RpcDirectories {
  const imagePath = resolve(around.imagesDirectory);
  const workPath = around.workDirectory === undefined ? imagePath : resolve(around.workDirectory);
  const log = around.logFile ?? defaultLog;
  if (log === '-') throw usage('cannot log to standard output: the log is a file', 'give -o FILE');
  return { imagePath, workPath, logName: isAbsolute(log) ? relative(workPath, log) : log };
}

export function optionsText(): string {
  return table
    .map(({ name, alias, value, optionalValue, describe }) => {
      const shown = value === undefined ? '' : optionalValue === true ? `[=${value}]` : ` ${value}`;
      return `  ${alias === undefined ? '    ' : `-${alias}, `}${`--${name}${shown}`.padEnd(32)} ${describe}`;
    })
    .join('\n');
}

function append<Name extends 'external' | 'ext_mnt' | 'inherit_fd' | 'join_ns' | 'cg_root'>(
  draft: Draft,
  field: Name,
  value: NonNullable<Draft[Name]>[number],
): void {
  draft[field] = [...((draft[field] ?? []) as readonly unknown[]), value] as Draft[Name];
}

function cgroupMode(word: string): number {
  const modes: Readonly<Record<string, number>> = {
    '': criu_cg_mode.SOFT,
    soft: criu_cg_mode.SOFT,
    ignore: criu_cg_mode.IGNORE,
    none: criu_cg_mode.CG_NONE,
    props: criu_cg_mode.PROPS,
    full: criu_cg_mode.FULL,
    strict: criu_cg_mode.STRICT,
  };
  const mode = modes[word];
  if (mode === undefined) throw usage(`cannot use --manage-cgroups ${word}: there is no such mode`);
  return mode;
}

function wholeNumber(name: string, text: string, least: number): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value) || value < least)
    throw usage(`cannot use --${name} ${text}: it must be a whole number of at least ${least}`);
  return value;
}

function splitOnce(text: string, separator: string): [string, string | undefined] {
  const at = text.indexOf(separator);
  return at < 0 ? [text, undefined] : [text.slice(0, at), text.slice(at + 1)];
}
