// CRIU's command line on our engine, for a bare process tree: version, check,
// dump, pre-dump and restore. Every option that is not built is refused by name.
import { writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { defaultCriuConfiguration, readCriuConfiguration } from '../../runtime-shim/criu-configuration.js';
import { fileError } from '../../runtime-shim/errors/index.js';
import { becomeSubreaper, stayWith } from '../../runtime-shim/foreground.js';
import { checkHost } from '../../runtime-shim/host-check.js';
import { dump } from '../../runtime-shim/rpc/dump.js';
import { completeOptions, type RpcOptions } from '../../runtime-shim/rpc/packets.js';
import { restore } from '../../runtime-shim/rpc/restore.js';
import { criuVersion, serve } from '../../runtime-shim/rpc/service.js';
import { usage } from '../arguments.js';
import { errorDetails, errorSentence } from '../render/error.js';
import { requireRoot } from '../require-root.js';
import { stasisVersion } from '../version.js';
import { directoriesOf, optionsText, parseCommandLine, type CommandLine } from './options.js';

/** The version of CRIU whose images and command line these are. */
const kCriuVersion = `${criuVersion.major}.${criuVersion.minor}`;
const kBuilt = 'built are: dump, pre-dump, restore, check, swrk';

/** Nobody is told anything: there is no client. */
const noNotify = (): void => undefined;

/** Returns the exit status. */
export async function main(words: readonly string[]): Promise<number> {
  try {
    const line = parseCommandLine(words);
    if (line.around.help) return print(helpText());
    if (line.around.version) return print(`Version: ${kCriuVersion}\nstasis ${stasisVersion}\n`);
    const [action, ...rest] = line.positionals;
    if (action === 'swrk') {
      const ownFd = Number(rest[0]);
      if (rest.length !== 1 || !Number.isInteger(ownFd) || ownFd < 0)
        throw usage('cannot serve: swrk needs the number of its socket', 'this action is for programs, see criu dump');
      return await serve(ownFd);
    }
    if (rest.length > 0) throw usage(`cannot understand ${JSON.stringify(rest[0])} after ${action}`);
    const abort = new AbortController();
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => abort.abort());
    switch (action) {
      case 'dump':
      case 'pre-dump':
        return await dumpTree(line, action, abort.signal);
      case 'restore':
        return await restoreTree(line, abort.signal);
      case 'check':
        return check(line);
      case undefined:
        throw usage('cannot tell what to do: no action is given', kBuilt);
      default:
        throw usage(`cannot ${action}: this action is not built yet`, kBuilt);
    }
  } catch (error) {
    process.stderr.write(`${[...errorDetails(error, false), errorSentence(error)].join('\n')}\n`);
    return 1;
  }
}

async function dumpTree(line: CommandLine, action: 'dump' | 'pre-dump', signal: AbortSignal): Promise<number> {
  if (line.options.pid === undefined) throw usage(`cannot ${action}: --tree must name a pid`, 'give -t PID');
  requireRoot(`${action} pid ${line.options.pid}`);
  await dump(optionsOf(line), directoriesOf(line.around, `${action}.log`), noNotify, {
    preDump: action === 'pre-dump',
    // A bare tree brings back its streams, or says that it cannot; a runtime gives a container new ones.
    ownStreams: true,
    signal,
  });
  return 0;
}

async function restoreTree(line: CommandLine, signal: AbortSignal): Promise<number> {
  requireRoot('restore');
  const { around } = line;
  if (!around.detached) becomeSubreaper();
  const directories = directoriesOf(around, 'restore.log');
  const hostPid = await restore(optionsOf(line), directories, noNotify, {
    signal,
    ...(around.pidFile === undefined ? {} : { parked: writePidFile(resolve(directories.workPath, around.pidFile)) }),
  });
  return around.detached ? 0 : await stayWith(hostPid);
}

/** The command line counts more than configuration files. */
function optionsOf({ options, around }: CommandLine): RpcOptions {
  const configured =
    around.configuration === undefined
      ? defaultCriuConfiguration(process.env)
      : readCriuConfiguration(around.configuration);
  return completeOptions({ ...configured, ...options });
}

/** While nothing runs yet: if it cannot be written, nothing has been restored. */
function writePidFile(path: string): (hostPid: number) => void {
  return (hostPid) => {
    try {
      writeFileSync(path, String(hostPid), { mode: 0o600, flag: 'wx' });
    } catch (error) {
      throw fileError(`cannot write the pid to ${path}`, path, error);
    }
  };
}

/** The names that CRIU gives to what we have. */
const features: Readonly<Record<string, string>> = {
  mem_dirty_track: 'PAGEMAP_SCAN',
  pagemap_scan: 'PAGEMAP_SCAN',
  pidfd_getfd: 'pidfd_getfd',
  clone3_set_tid: 'clone3',
  uffd: 'userfaultfd',
  'uffd-noncoop': 'userfaultfd',
};

function check({ around }: CommandLine): number {
  const facts = checkHost();
  const wanted = around.features.map((name) => {
    const ours = facts.find((fact) => fact.name === features[name]);
    if (ours === undefined)
      throw usage(
        `cannot check ${name}: no such feature is known here`,
        `known are: ${Object.keys(features).join(', ')}`,
      );
    return { ...ours, name };
  });
  const missing = (
    wanted.length > 0 ? wanted : facts.filter(({ required, name }) => required && name !== 'base runtime')
  ).filter(({ available }) => !available);
  for (const { name, detail } of missing) process.stderr.write(`${name}: ${detail}\n`);
  return missing.length === 0 ? print('Looks good.\n') : 1;
}

function helpText(): string {
  return [
    'criu dump -t PID -D DIR [options]',
    'criu pre-dump -t PID -D DIR [options]',
    'criu restore -D DIR [-d] [options]',
    'criu check [--feature NAME]',
    'criu swrk FD',
    '',
    optionsText(),
    '',
  ].join('\n');
}

function print(text: string): number {
  process.stdout.write(text);
  return 0;
}
