// stasis: our own verbs of the runtime, and the ones for people. The launcher
// sends every other verb to the base runtime before node is ever started. What
// starts this is start.ts.
import { resolve } from 'node:path';
import { globalOptions, type RuntimeOption } from '../../oci-spec/runtime-options.js';
import { baseRuntimeLines } from '../../runtime-shim/container/index.js';
import { exitStatusOfKind, StasisError } from '../../runtime-shim/errors/index.js';
import { parseArguments, refuseUnbuilt, usage } from '../arguments.js';
import { loadHelp } from '../load-help.js';
import { errorDetails, errorSentence } from '../render/error.js';
import { appendLog, logRecord, type LogFormat } from '../render/log.js';
import { versionText } from '../version.js';
import { checkCommand } from './commands/check.js';
import { checkpointCommand } from './commands/checkpoint.js';
import { createCommand } from './commands/create.js';
import { hookCommand } from './commands/hook.js';
import { featuresCommand } from './commands/features.js';
import { inspectCommand } from './commands/inspect.js';
import { packCommand } from './commands/pack.js';
import { planCommand } from './commands/plan.js';
import { restoreCommand } from './commands/restore.js';
import { setupCommand } from './commands/setup.js';
import { unpackCommand } from './commands/unpack.js';
import { verifyCommand } from './commands/verify.js';
import { flag, text, type Command } from './command.js';

const commands: readonly Command[] = [
  checkpointCommand,
  restoreCommand,
  checkCommand,
  setupCommand,
  planCommand,
  inspectCommand,
  packCommand,
  unpackCommand,
  verifyCommand,
  createCommand,
  hookCommand,
  featuresCommand,
];
const common: readonly RuntimeOption[] = [
  { name: 'help', alias: 'h', type: 'boolean', describe: 'show this' },
  { name: 'version', alias: 'v', type: 'boolean', describe: 'show the version' },
  ...globalOptions,
];

interface Log {
  readonly path: string | undefined;
  readonly format: LogFormat;
  readonly debug: boolean;
  /** Managers show their users what is on stderr, some of them its first line: there, one sentence has to do. */
  readonly calledByProgram: boolean;
}

/** Returns the exit status. */
export async function main(words: readonly string[]): Promise<number> {
  const log = findLog(words);
  let command: Command | undefined;
  try {
    command = commands.find(({ verb }) => verb === verbOf(words));
    const options = [...common, ...(command?.options ?? [])];
    const { given, positionals: all } = parseArguments(words, options);
    const [verb, ...positionals] = all;
    if (flag(given, 'version') || verb === 'version') return print(versionText(await baseRuntimeLines(process.env)));
    if (flag(given, 'help') || command === undefined) return print(await helpText(command, options));
    refuseUnbuilt(given, options);
    refuseWrongCount(command, positionals);
    const abort = abortOnSignals();
    return await command.run(given, positionals[0] ?? '', {
      cwd: process.cwd(),
      environment: process.env,
      signal: abort.signal,
      globals: { root: stateRoot(text(given, 'root')), systemdCgroup: flag(given, 'systemd-cgroup') },
      warn: (message) =>
        void (log.path !== undefined && appendLog(log.path, logRecord(log.format, 'warning', message, new Date()))),
      print,
    });
  } catch (error) {
    report(error, log);
    if (command?.runtimeVerb !== false || !(error instanceof StasisError)) return 1;
    return exitStatusOfKind[error.kind];
  }
}

/** Looked for before anything is parsed: a malformed command line is reported there as well. */
function findLog(words: readonly string[]): Log {
  const value = (name: string): string | undefined => {
    for (let at = words.length - 1; at >= 0; at -= 1) {
      const [flagName, ...rest] = words[at]!.replace(/^--?/, '').split('=');
      if (!words[at]!.startsWith('-') || flagName !== name) continue;
      return rest.length > 0 ? rest.join('=') : words[at + 1];
    }
    return undefined;
  };
  const path = value('log');
  return {
    path: path === '' ? undefined : path,
    format: value('log-format') === 'json' ? 'json' : 'text',
    debug: words.includes('--debug') || words.includes('-debug'),
    calledByProgram: words.some((word) => /^--?(work-path|pid-file)(=|$)/.test(word)),
  };
}

/** The first word that is neither a flag nor a global flag's value, as the launcher finds it. */
function verbOf(words: readonly string[]): string | undefined {
  for (let at = 0; at < words.length; at += 1) {
    const word = words[at]!;
    if (word === '--') return words[at + 1];
    if (!word.startsWith('-') || word === '-') return word;
    const option = globalOptions.find(({ name }) => name === word.replace(/^--?/, ''));
    if (option !== undefined && option.type !== 'boolean') at += 1;
  }
  return undefined;
}

/** What yargs needs to load is more than all of a checkpoint: only for whoever asks for help. */
async function helpText(command: Command | undefined, options: readonly RuntimeOption[]): Promise<string> {
  const { optionsHelp } = await loadHelp();
  return await optionsHelp(
    command === undefined
      ? usageText()
      : `stasis ${command.verb} [options]${command.positional === undefined ? '' : ` <${command.positional}>`}\n\n${command.describe}`,
    options,
  );
}

function usageText(): string {
  return [
    'stasis [global options] <verb> [options]',
    '',
    // A create is ours only with a checkpoint: its help is the base runtime's.
    ...commands
      .filter((command) => command !== createCommand)
      .map(({ verb, describe }) => `  ${verb.padEnd(12)}${describe}`),
    '',
    'Every other verb (create, start, run, state, kill, delete, exec, list, ...) is the base',
    "runtime's (runc or crun) and is passed on to it unchanged.",
  ].join('\n');
}

function refuseWrongCount(command: Command, positionals: readonly string[]): void {
  const wanted = command.positional === undefined ? 0 : 1;
  if (positionals.length === wanted) return;
  throw usage(
    `stasis: "${command.verb}" requires exactly ${wanted} argument(s)`,
    `see "stasis ${command.verb} --help"`,
  );
}

function stateRoot(given: string | undefined): string | undefined {
  if (given === undefined) return undefined;
  const root = resolve(given);
  if (root === '/') throw usage('Option --root argument should not be set to /');
  return root;
}

function abortOnSignals(): AbortController {
  const abort = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => abort.abort());
  return abort;
}

function print(text: string): number {
  // Whoever reads our output may stop early; that is no failure of ours.
  if (process.stdout.listenerCount('error') === 0) process.stdout.on('error', () => undefined);
  process.stdout.write(text.endsWith('\n') ? text : `${text}\n`);
  return 0;
}

/** As runc: a record in the log and the plain sentence on stderr, last. For a person without a log there are details. */
function report(error: unknown, log: Log): void {
  const sentence = errorSentence(error);
  const logged = log.path !== undefined && appendLog(log.path, logRecord(log.format, 'error', sentence, new Date()));
  const details = (logged || log.calledByProgram) && !log.debug ? [] : errorDetails(error, log.debug);
  process.stderr.write(`${[...details, sentence].join('\n')}\n`);
}
