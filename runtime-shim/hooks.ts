// Hooks that runc runs on restore: prestart and createRuntime, when the
// namespaces exist and nothing runs yet. They are the bundle's own programs.
import { spawn } from 'node:child_process';
import { formatOciState } from '../oci-spec/runtime-state.js';
import type { RuntimeConfig, SpecHook } from '../oci-spec/runtime-config.js';
import { StasisError } from './errors/index.js';

export interface HookedContainer {
  readonly spec: RuntimeConfig;
  readonly id: string;
  readonly bundle: string;
  readonly initHostPid: number;
}

function stateFor(container: HookedContainer, status: 'creating' | 'created'): string {
  const { spec } = container;
  return formatOciState({
    ociVersion: spec.ociVersion,
    id: container.id,
    status,
    hostPid: container.initHostPid,
    bundle: container.bundle,
    annotations: spec.annotations,
  });
}

/** After a `create` that was a restore; as the specification has it, their failure is told and changes nothing. */
export async function runPoststartHooks(container: HookedContainer, warn: (message: string) => void): Promise<void> {
  for (const hook of container.spec.hooks.get('poststart') ?? []) {
    try {
      await runHook('poststart', hook, stateFor(container, 'created'));
    } catch (error) {
      warn((error as Error).message);
    }
  }
}

export async function runRestoreHooks(container: HookedContainer): Promise<void> {
  const { spec } = container;
  const state = stateFor(container, 'creating');
  for (const name of ['prestart', 'createRuntime'] as const) {
    for (const hook of spec.hooks.get(name) ?? []) await runHook(name, hook, state);
  }
}

async function runHook(name: string, hook: SpecHook, state: string): Promise<void> {
  const [argv0, ...args] = hook.args ?? [];
  const environment = Object.fromEntries(
    (hook.env ?? []).map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]),
  );
  const failure = await new Promise<string | undefined>((resolve) => {
    // Our own streams are the container's: what a hook says must not end up there.
    const child = spawn(hook.path, args, {
      argv0: argv0 ?? hook.path,
      env: environment,
      stdio: ['pipe', 'ignore', 'pipe'],
      ...(hook.timeoutSeconds === undefined ? {} : { timeout: hook.timeoutSeconds * 1000, killSignal: 'SIGKILL' }),
    });
    let said = '';
    child.stderr.on('data', (chunk: Buffer) => {
      if (said.length < 4096) said += chunk.toString('utf8');
    });
    child.once('error', (error) => resolve(error.message));
    child.once('close', (code, signal) =>
      resolve(
        code === 0
          ? undefined
          : `${signal === null ? `exit status ${code}` : `killed by ${signal}`}${said === '' ? '' : `: ${said.trim()}`}`,
      ),
    );
    child.stdin.on('error', () => undefined);
    child.stdin.end(state);
  });
  if (failure === undefined) return;
  throw new StasisError({
    code: 'ENVIRONMENT',
    message: `cannot run the ${name} hook ${hook.path}: ${failure}`,
    subject: { path: hook.path },
    hint: 'repair the hook, or remove it from config.json',
  });
}
