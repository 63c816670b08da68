// The configuration file that a runtime has CRIU read for a container. Users of
// managers that pass no options on have their options there; they are read as
// the flags of the same names, whoever calls us.
import { closeSync, constants, existsSync, fstatSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  CriuConfigurationError,
  kCriuConfigAnnotation,
  parseCriuConfiguration,
  type ConfiguredOption,
} from '../oci-spec/criu-configuration.js';
import type { RuntimeFamily } from './container/index.js';
import { StasisError, errnoCode, fileError } from './errors/index.js';

/** Option -> field of CRIU's request. */
const switches = {
  'shell-job': 'shell_job',
  'tcp-established': 'tcp_established',
  'tcp-close': 'tcp_close',
  'ext-unix-sk': 'ext_unix_sk',
  'link-remap': 'link_remap',
  'skip-in-flight': 'tcp_skip_in_flight',
} as const;

type Switch = (typeof switches)[keyof typeof switches];

/** What is there wins over what the caller asked for. */
export type CriuConfiguration = { readonly [Name in Switch]?: boolean };

/** How CRIU works, which is not how this works, or what is done anyway. */
const withoutEffect: ReadonlySet<string> = new Set([
  ...[
    'file-locks',
    'verbosity',
    'log-pid',
    'display-stats',
    'network-lock',
    'evasive-devices',
    'force-irmap',
    'irmap-scan-path',
  ],
  ...['ghost-limit', 'ghost-fiemap', 'skip-file-rwx-check', 'file-validation', 'enable-external-masters'],
  ...['enable-external-sharing', 'enable-fs', 'weak-sysctls', 'allow-uprobes', 'libdir'],
]);

const kMaxBytes = 64 * 1024;
const kRuncFile = '/etc/criu/runc.conf';
const kCrunFile = '/etc/criu/crun.conf';

/** Of a container, by its annotations and the runtime that manages it, as that runtime chooses it for CRIU. */
export function criuConfigurationOf(
  annotations: Readonly<Record<string, string>>,
  family: RuntimeFamily,
): CriuConfiguration {
  const named = annotations[kCriuConfigAnnotation];
  const usual = family === 'crun' && existsSync(kCrunFile) ? kCrunFile : kRuncFile;
  return readCriuConfiguration(named ?? usual);
}

/** What CRIU reads before it looks at a request or a command line, later files before earlier ones. */
export function defaultCriuConfiguration(environment: NodeJS.ProcessEnv): CriuConfiguration {
  const home = environment['HOME'] ?? '';
  return {
    ...readCriuConfiguration('/etc/criu/default.conf'),
    ...(home === '' ? {} : readCriuConfiguration(join(home, '.criu/default.conf'))),
    ...readCriuConfiguration(environment['CRIU_CONFIG_FILE'] ?? ''),
  };
}

/** Empty if there is no such file, or `path` is "", as with CRIU. An option whose effect is not built is refused by name. */
export function readCriuConfiguration(path: string): CriuConfiguration {
  const text = path === '' ? undefined : readSmallFile(path);
  if (text === undefined) return {};
  let options: ConfiguredOption[];
  try {
    options = parseCriuConfiguration(text);
  } catch (error) {
    if (!(error instanceof CriuConfigurationError)) throw error;
    throw refusal(path, error.message, 'repair that line');
  }
  const configuration: { -readonly [Name in Switch]?: boolean } = {};
  for (const { name, value, line } of options) {
    const positive = name in switches || withoutEffect.has(name) ? name : name.replace(/^no-/, '');
    if (positive in switches) {
      if (value !== undefined) throw refusal(path, `line ${line}: ${name} takes no value`, 'repair that line');
      configuration[switches[positive as keyof typeof switches]] = positive === name;
    } else if (!withoutEffect.has(positive)) {
      throw refusal(path, `line ${line}: ${name} is not built`, 'take that line out');
    }
  }
  return configuration;
}

function readSmallFile(path: string): string | undefined {
  let fd: number;
  try {
    // A pipe of that name is not waited for.
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    if (errnoCode(error) === 'ENOENT') return undefined;
    throw fileError(`cannot read CRIU's configuration ${path}`, path, error);
  }
  try {
    const facts = fstatSync(fd);
    if (!facts.isFile() || facts.size > kMaxBytes)
      throw refusal(path, `it is no plain file of at most ${kMaxBytes} bytes`, 'name another one');
    return readFileSync(fd, 'utf8');
  } finally {
    closeSync(fd);
  }
}

function refusal(path: string, why: string, hint: string): StasisError {
  return new StasisError({
    code: 'OPTION_NOT_BUILT',
    message: `cannot use CRIU's configuration ${path}: ${why}`,
    subject: { path },
    hint,
  });
}
