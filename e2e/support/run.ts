// Running commands: everything that a failed test needs to say is in the result.
import { execa, type Options } from 'execa';

export interface CommandResult {
  readonly command: string;
  readonly exitCode: number;
  readonly stdout: string;
  readonly stderr: string;
  readonly elapsedMs: number;
}

export interface CommandOptions {
  readonly cwd?: string;
  readonly env?: Record<string, string>;
  /** Standard input: nothing unless given. */
  readonly input?: string | Uint8Array;
  readonly stdout?: number;
  readonly stderr?: number;
  readonly timeoutMs?: number;
}

/** Runs a command to its end; a failing exit status is a result, not an exception. */
export async function run(
  program: string,
  args: readonly string[],
  options: CommandOptions = {},
): Promise<CommandResult> {
  const startedAt = performance.now();
  const execaOptions: Options = {
    reject: false,
    timeout: options.timeoutMs ?? 120_000,
    // Not Node's own preference for IPC or buffering: what the command would get from a shell.
    stdin: options.input === undefined ? 'ignore' : 'pipe',
    // execa takes any descriptor number, its types know only the standard ones.
    stdout: (options.stdout as 1 | undefined) ?? 'pipe',
    stderr: (options.stderr as 2 | undefined) ?? 'pipe',
    ...(options.input === undefined ? {} : { input: options.input }),
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    ...(options.env === undefined ? {} : { env: options.env, extendEnv: false }),
  };
  const result = await execa(program, [...args], execaOptions);
  // No exit status and no signal: it could not be started, and only execa knows why.
  const started = result.exitCode !== undefined || result.signal !== undefined;
  return {
    command: result.command,
    exitCode: result.exitCode ?? (started ? 128 : 127),
    stdout: typeof result.stdout === 'string' ? result.stdout : '',
    stderr: started ? (typeof result.stderr === 'string' ? result.stderr : '') : (result.shortMessage ?? ''),
    elapsedMs: performance.now() - startedAt,
  };
}

/** Runs a command that has to succeed. */
export async function mustRun(
  program: string,
  args: readonly string[],
  options: CommandOptions = {},
): Promise<CommandResult> {
  const result = await run(program, args, options);
  if (result.exitCode !== 0) throw new Error(describeFailure(result));
  return result;
}

export function describeFailure(result: CommandResult): string {
  const text = [result.stderr, result.stdout].filter((part) => part !== '').join('\n');
  return `"${result.command}" ended with status ${result.exitCode}${text === '' ? '' : `:\n${text}`}`;
}

export function lastLine(text: string): string {
  return text.trimEnd().split('\n').at(-1) ?? '';
}
