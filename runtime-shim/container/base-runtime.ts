// The runtime that makes and manages containers: found as the launcher finds
// it (nativecore/launcher), asked for its version, told to delete.
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { basename, isAbsolute, join } from 'node:path';
import { promisify } from 'node:util';
import { findLocations } from '../../nativecore/index.js';
import type { RuncDialect } from '../../oci-spec/libcontainer-config.js';
import { isContainerId } from '../../oci-spec/runc-state.js';
import { StasisError } from '../errors/index.js';

const runFile = promisify(execFile);

const baseNames = ['runc', 'crun'];
const systemDirectories = ['/usr/bin', '/usr/sbin', '/usr/local/bin', '/usr/local/sbin'];
const configFile = '/etc/stasis/config.json';
/** Of this boot, and root's: a note in it is worth as much as the runtime's own answer. */
const noteDirectory = '/run/stasis';

export interface BaseRuntime {
  readonly path: string;
}

/** Whose state files a container has. */
export type RuntimeFamily = 'runc' | 'crun';

export interface BaseRuntimeVersion {
  readonly family: RuntimeFamily;
  readonly dialect: RuncDialect;
  readonly specVersion: string;
}

export function findBaseRuntime(environment: NodeJS.ProcessEnv = process.env): BaseRuntime {
  const named = environment['STASIS_RUNTIME'];
  const [configured, where] =
    named !== undefined && named !== '' ? [named, 'STASIS_RUNTIME'] : [configuredRuntime(), configFile];
  const directories = [...(environment['PATH'] ?? '').split(':').filter(isAbsolute), ...systemDirectories];
  if (configured !== undefined) {
    const candidates = configured.includes('/')
      ? [configured]
      : directories.map((directory) => join(directory, configured));
    const found = candidates.find(isUsable);
    if (found !== undefined) return { path: found };
    throw new StasisError({
      code: 'BASE_RUNTIME_MISSING',
      message: `cannot find the base runtime: ${where} names ${JSON.stringify(configured)}, which is not an executable file`,
      hint: `name the path of runc or crun in ${where}`,
    });
  }
  for (const name of baseNames) {
    const found = directories.map((directory) => join(directory, name)).find(isUsable);
    if (found !== undefined) return { path: found };
  }
  throw new StasisError({
    code: 'BASE_RUNTIME_MISSING',
    message: 'cannot find the base runtime: neither runc nor crun is installed',
    hint: `install one (apt-get install runc), or name it in ${configFile} as {"runtime": "/path/to/runc"}`,
  });
}

/** What it has said before, if it is still the same file: to start it takes 30 ms of processor time (docs/design/0057). */
export async function baseRuntimeVersion(runtime: BaseRuntime): Promise<BaseRuntimeVersion> {
  const file = identify(runtime.path);
  const remembered = recall(file);
  if (remembered !== undefined) return parseVersion(remembered);
  const { stdout } = await runFile(runtime.path, ['--version'], { timeout: 10_000 });
  // It may have been replaced while it ran.
  if (file !== undefined && file.content === identify(runtime.path)?.content && isElf(runtime.path))
    remember(file, stdout);
  return parseVersion(stdout);
}

function parseVersion(stdout: string): BaseRuntimeVersion {
  const name = /^(\S+) version (\S+)/m.exec(stdout);
  const [major = 1, minor = 1] = (name?.[2] ?? '').split('.').map(Number);
  return {
    family: name?.[1] === 'crun' ? 'crun' : 'runc',
    dialect: major > 1 || minor >= 2 ? '1.2' : '1.1',
    specVersion: /^spec: (\S+)/m.exec(stdout)?.[1] ?? '1.0.2',
  };
}

interface FileIdentity {
  /** Where what it said is kept. */
  readonly note: string;
  /** Changes whenever the file does. */
  readonly content: string;
}

/** undefined: it is not there, and whoever starts it says so. */
function identify(path: string): FileIdentity | undefined {
  const found = statSync(path, { bigint: true, throwIfNoEntry: false });
  if (found === undefined) return undefined;
  const { dev, ino, size, mtimeNs, ctimeNs } = found;
  return {
    note: join(noteDirectory, `base-runtime-${dev}-${ino}.json`),
    content: [dev, ino, size, mtimeNs, ctimeNs].join(' '),
  };
}

/** Not a script, which may start another program tomorrow. */
function isElf(path: string): boolean {
  const fd = openSync(path, 'r');
  try {
    const magic = Buffer.alloc(4);
    readSync(fd, magic, 0, 4, 0);
    return magic.equals(Buffer.from('\x7fELF', 'latin1'));
  } finally {
    closeSync(fd);
  }
}

function recall(file: FileIdentity | undefined): string | undefined {
  if (file === undefined) return undefined;
  try {
    const note = JSON.parse(readFileSync(file.note, 'utf8')) as { content?: unknown; version?: unknown };
    return note.content === file.content && typeof note.version === 'string' ? note.version : undefined;
  } catch {
    return undefined;
  }
}

/** Where it cannot be kept, the runtime is asked each time. */
function remember({ note, content }: FileIdentity, version: string): void {
  const hidden = `${note}.${process.pid}`;
  try {
    mkdirSync(noteDirectory, { recursive: true, mode: 0o700 });
    writeFileSync(hidden, JSON.stringify({ content, version }), { mode: 0o600 });
    renameSync(hidden, note);
  } catch {
    rmSync(hidden, { force: true });
  }
}

/** What the base runtime prints as its version; undefined if there is none that does. */
export async function baseRuntimeLines(environment: NodeJS.ProcessEnv): Promise<string | undefined> {
  try {
    return (await runFile(findBaseRuntime(environment).path, ['--version'], { timeout: 10_000 })).stdout;
  } catch {
    return undefined;
  }
}

/** Without streams: what it starts would keep them. */
export async function runBaseRuntime(environment: NodeJS.ProcessEnv, words: readonly string[]): Promise<void> {
  const { path } = findBaseRuntime(environment);
  const child = spawn(path, words, { stdio: 'ignore' });
  const [status] = (await once(child, 'exit')) as [number | null];
  if (status === 0) return;
  throw new StasisError({
    code: 'ENVIRONMENT',
    message: `cannot run ${basename(path)} ${words.join(' ')}: it ended with ${status ?? 'a signal'}`,
    hint: 'run it by hand to see why',
  });
}

/** The document of the runtime specification's features.md, as the base runtime has it. */
export async function baseRuntimeFeatures(
  environment: NodeJS.ProcessEnv,
): Promise<{ readonly annotations?: Readonly<Record<string, string>> }> {
  const { path } = findBaseRuntime(environment);
  try {
    const { stdout } = await runFile(path, ['features'], { timeout: 10_000 });
    const features: unknown = JSON.parse(stdout);
    if (typeof features !== 'object' || features === null) throw new Error('it printed no JSON object');
    return features;
  } catch (error) {
    const said = String((error as { stderr?: string }).stderr ?? '').trim();
    throw new StasisError({
      code: 'ENVIRONMENT',
      message: `cannot tell the features of the base runtime "${path}": ${said === '' ? (error as Error).message : said}`,
      hint: 'use runc 1.1 or later, or crun 1.8 or later',
      cause: error,
    });
  }
}

/**
 * Where a runtime keeps containers unless it is told otherwise. An empty XDG_RUNTIME_DIR is an unset one; real root
 * does not use it with runc, and does with crun.
 */
export function defaultStateRoot(family: RuntimeFamily, environment: NodeJS.ProcessEnv): string {
  const runtimeDirectory = environment['XDG_RUNTIME_DIR'] ?? '';
  const ignored = family === 'runc' && process.geteuid?.() === 0;
  return join(runtimeDirectory === '' || ignored ? '/run' : runtimeDirectory, family);
}

/** Where a container is that nobody gave a root for. What the base runtime's name promises is looked at first. */
export function findStateRoot(id: string, environment: NodeJS.ProcessEnv): string {
  const families: readonly RuntimeFamily[] = isNamedCrun(environment) ? ['crun', 'runc'] : ['runc', 'crun'];
  const roots = families.map((family) => defaultStateRoot(family, environment));
  return roots.find((root) => isContainerId(id) && existsSync(join(root, id))) ?? roots[0]!;
}

function isNamedCrun(environment: NodeJS.ProcessEnv): boolean {
  try {
    return basename(realpathSync(findBaseRuntime(environment).path)) === 'crun';
  } catch {
    // Whoever needs the runtime says what is wrong with it.
    return false;
  }
}

/** Removes state, cgroups and runs poststop hooks of a container whose processes have ended. */
export async function deleteContainer(
  runtime: BaseRuntime,
  request: { readonly root: string; readonly id: string; readonly systemdCgroup: boolean },
): Promise<void> {
  const flags = ['--root', request.root, ...(request.systemdCgroup ? ['--systemd-cgroup'] : [])];
  try {
    await runFile(runtime.path, [...flags, 'delete', '--force', request.id], { timeout: 60_000 });
  } catch (error) {
    const said = String((error as { stderr?: string }).stderr ?? '').trim();
    throw new StasisError({
      code: 'ENVIRONMENT',
      message: `cannot delete container ${JSON.stringify(request.id)} after its checkpoint: ${said === '' ? (error as Error).message : said}`,
      subject: { container: request.id },
      why: 'the checkpoint itself is complete',
      hint: `delete it with "${runtime.path} --root ${request.root} delete --force ${request.id}"`,
      cause: error,
    });
  }
}

function configuredRuntime(): string | undefined {
  try {
    const runtime = (JSON.parse(readFileSync(configFile, 'utf8')) as { runtime?: unknown }).runtime;
    return typeof runtime === 'string' && runtime !== '' ? runtime : undefined;
  } catch {
    return undefined;
  }
}

/** An executable file that is not stasis itself, which would call itself for ever. */
function isUsable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    const found = statSync(path);
    return found.isFile() && !isSameFile(found, join(findLocations().libraryDirectory, '..', '..', 'bin', 'stasis'));
  } catch {
    return false;
  }
}

function isSameFile(one: { dev: number; ino: number }, otherPath: string): boolean {
  try {
    const other = statSync(otherPath);
    return one.dev === other.dev && one.ino === other.ino;
  } catch {
    return false;
  }
}
