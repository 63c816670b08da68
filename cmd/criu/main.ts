// CRIU's command line on our engine, for a bare process tree: version, check,
// dump and restore. Every option that is not built is refused by name.
import { resolve } from 'node:path';
import type { RuntimeOption } from '../../oci-spec/runtime-options.js';
import { checkpointProcess, restoreProcess } from '../../runtime-shim/bare-tree.js';
import { checkpointDefaults } from '../../runtime-shim/checkpoint-request.js';
import { becomeSubreaper, stayWith } from '../../runtime-shim/foreground.js';
import { checkHost } from '../../runtime-shim/host-check.js';
import { restoreDefaults } from '../../runtime-shim/restore-request.js';
import { criuVersion, serve } from '../../runtime-shim/rpc/service.js';
import { refuseUnbuilt, usage } from '../arguments.js';
import { errorDetails, errorSentence } from '../render/error.js';
import { requireRoot } from '../require-root.js';
import { stasisVersion } from '../version.js';

/** The version of CRIU whose images and command line these are. */
const kCriuVersion = `${criuVersion.major}.${criuVersion.minor}`;

interface CriuOption extends RuntimeOption {
  /** CRIU's one-letter form. */
  readonly alias?: string;
}

const options: readonly CriuOption[] = [
  { name: 'tree', alias: 't', type: 'string', describe: 'pid of the root of the tree' },
  { name: 'images-dir', alias: 'D', type: 'string', describe: 'directory of the images' },
  { name: 'work-dir', alias: 'W', type: 'string', describe: 'directory of log and statistics' },
  { name: 'leave-running', alias: 'R', type: 'boolean', describe: 'let the tree run on' },
  { name: 'restore-detached', alias: 'd', type: 'boolean', describe: 'return as soon as the tree runs' },
  { name: 'shell-job', alias: 'j', type: 'boolean', describe: 'the session belongs to a shell outside' },
  { name: 'file-locks', alias: 'l', type: 'boolean', describe: 'allow file locks' },
  { name: 'tcp-established', type: 'boolean', describe: 'allow established TCP connections' },
  { name: 'ext-unix-sk', type: 'boolean', describe: 'allow unix sockets with a peer outside' },
  { name: 'version', alias: 'V', type: 'boolean', describe: 'show the version' },
  { name: 'help', alias: 'h', type: 'boolean', describe: 'show this' },
];

type Given = Record<string, string | boolean>;

/** Returns the exit status. */
export async function main(words: readonly string[]): Promise<number> {
  try {
    const { given, positionals } = parse(words);
    if (given['version'] === true) return print(`Version: ${kCriuVersion}\nstasis ${stasisVersion}\n`);
    if (given['help'] === true) return print(helpText());
    refuseUnbuilt(given, options);
    const [action, ...rest] = positionals;
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
        return await dump(given, abort.signal);
      case 'restore':
        return await restore(given, abort.signal);
      case 'check':
        return check();
      case undefined:
        throw usage('cannot tell what to do: no action is given', 'give one of: dump, restore, check, swrk');
      default:
        throw usage(`cannot ${action}: this action is not built yet`, 'built are: dump, restore, check, swrk');
    }
  } catch (error) {
    process.stderr.write(`${[...errorDetails(error, false), errorSentence(error)].join('\n')}\n`);
    return 1;
  }
}

async function dump(given: Given, signal: AbortSignal): Promise<number> {
  const tree = given['tree'];
  const hostPid = Number(tree);
  if (typeof tree !== 'string' || !Number.isInteger(hostPid) || hostPid <= 0)
    throw usage('cannot dump: --tree must name a pid', 'give -t PID');
  requireRoot(`dump pid ${hostPid}`);
  await checkpointProcess({
    ...checkpointDefaults,
    hostPid,
    ...directories(given),
    leaveRunning: given['leave-running'] === true,
    encode: {
      shellJob: given['shell-job'] === true,
      fileLocks: given['file-locks'] === true,
      tcpEstablished: given['tcp-established'] === true,
      externalUnixSockets: given['ext-unix-sk'] === true,
    },
    signal,
  });
  return 0;
}

async function restore(given: Given, signal: AbortSignal): Promise<number> {
  requireRoot('restore');
  const detached = given['restore-detached'] === true;
  if (!detached) becomeSubreaper();
  const hostPid = await restoreProcess({
    ...restoreDefaults,
    ...directories(given),
    shellJob: given['shell-job'] === true,
    signal,
  });
  return detached ? 0 : await stayWith(hostPid);
}

function check(): number {
  const missing = checkHost().filter(
    ({ available, required, name }) => required && !available && name !== 'base runtime',
  );
  for (const { name, detail } of missing) process.stderr.write(`${name}: ${detail}\n`);
  return missing.length === 0 ? print('Looks good.\n') : 1;
}

function directories(given: Given): { readonly imagePath: string; readonly workPath: string | undefined } {
  const named = (name: string): string | undefined =>
    typeof given[name] === 'string' ? resolve(given[name]) : undefined;
  return { imagePath: named('images-dir') ?? process.cwd(), workPath: named('work-dir') };
}

/** getopt_long's rules: "-D dir", "-Ddir", "--images-dir dir", "--images-dir=dir", "-Rj". */
function parse(words: readonly string[]): { readonly given: Given; readonly positionals: readonly string[] } {
  const given: Given = {};
  const positionals: string[] = [];
  const queue = [...words];
  for (let word = queue.shift(); word !== undefined; word = queue.shift()) {
    if (word === '--') return { given, positionals: [...positionals, ...queue] };
    if (!word.startsWith('-') || word === '-') {
      positionals.push(word);
      continue;
    }
    const long = word.startsWith('--');
    const [name, inline] = long
      ? splitOnce(word.slice(2), '=')
      : [word[1]!, word.length > 2 ? word.slice(2) : undefined];
    const option = options.find((one) => (long ? one.name === name : one.alias === name));
    if (option === undefined)
      throw usage(`cannot use ${long ? `--${name}` : `-${name}`}: this option is not built yet`);
    if (option.type === 'boolean') {
      if (long && inline !== undefined) throw usage(`cannot use --${name}=${inline}: the option takes no value`);
      given[option.name] = true;
      if (inline !== undefined) queue.unshift(`-${inline}`);
      continue;
    }
    const value = inline ?? queue.shift();
    if (value === undefined) throw usage(`cannot use ${word}: the option needs a value`);
    given[option.name] = value;
  }
  return { given, positionals };
}

function splitOnce(text: string, separator: string): [string, string | undefined] {
  const at = text.indexOf(separator);
  return at < 0 ? [text, undefined] : [text.slice(0, at), text.slice(at + 1)];
}

function helpText(): string {
  const lines = options.map(
    ({ name, alias, describe }) => `  ${alias === undefined ? '    ' : `-${alias}, `}--${name.padEnd(20)}${describe}`,
  );
  return [
    'criu dump -t PID -D DIR [options]',
    'criu restore -D DIR [-d] [options]',
    'criu check',
    'criu swrk FD',
    '',
    ...lines,
    '',
  ].join('\n');
}

function print(text: string): number {
  process.stdout.write(text);
  return 0;
}
