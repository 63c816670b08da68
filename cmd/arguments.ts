// Command lines in all the spellings that callers of runc use, brought into
// one: "-no-subreaper", "--flag value", "--flag=value", "-flag=value", flags
// after the container id, global flags after the verb. Go's two flag packages
// accept all of these; yargs gets the canonical form.
import { StasisError } from '../runtime-shim/errors/index.js';
import type { RuntimeOption } from '../oci-spec/runtime-options.js';

export interface Arguments {
  readonly positionals: readonly string[];
  readonly booleans: ReadonlySet<string>;
  /** The last one counts. */
  readonly strings: ReadonlyMap<string, string>;
  readonly lists: ReadonlyMap<string, readonly string[]>;
}

/** Canonical words: `--name` or `--name=value` first, then `--`, then positionals. Throws USAGE as runc words it. */
export function canonicalArguments(words: readonly string[], options: readonly RuntimeOption[]): string[] {
  const byName = new Map<string, RuntimeOption>();
  for (const option of options) {
    byName.set(option.name, option);
    if (option.alias !== undefined) byName.set(option.alias, option);
  }
  const flags: string[] = [];
  const positionals: string[] = [];
  for (let at = 0; at < words.length; at += 1) {
    const word = words[at]!;
    if (word === '--') {
      positionals.push(...words.slice(at + 1));
      break;
    }
    if (!word.startsWith('-') || word === '-') {
      positionals.push(word);
      continue;
    }
    const [given, ...rest] = word.replace(/^--?/, '').split('=');
    const option = byName.get(given!);
    if (option === undefined) throw usage(`flag provided but not defined: -${given}`);
    if (option.type === 'boolean') {
      flags.push(...booleanFlag(option.name, rest));
    } else if (rest.length > 0) {
      flags.push(`--${option.name}=${rest.join('=')}`);
    } else {
      const value = words[(at += 1)];
      if (value === undefined) throw usage(`flag needs an argument: --${option.name}`);
      flags.push(`--${option.name}=${value}`);
    }
  }
  return [...flags, '--', ...positionals];
}

function booleanFlag(name: string, value: readonly string[]): string[] {
  if (value.length === 0) return [`--${name}`];
  switch (value.join('=').toLowerCase()) {
    case 'true':
    case 't':
    case '1':
      return [`--${name}`];
    case 'false':
    case 'f':
    case '0':
      return [];
    default:
      throw usage(`invalid boolean value "${value.join('=')}" for -${name}`);
  }
}

/** Refuses by name what is not built and what has no such value; then nothing that was given is ignored. */
export function refuseUnbuilt(given: Readonly<Record<string, unknown>>, options: readonly RuntimeOption[]): void {
  for (const option of options) {
    const value = given[option.name];
    const values = (Array.isArray(value) ? value : [value]).filter((one) => one !== undefined && one !== false && one !== '');
    if (values.length === 0) continue;
    if (option.refused !== undefined) {
      throw new StasisError({ code: 'OPTION_NOT_BUILT', message: `cannot use --${option.name}: ${option.refused}` });
    }
    for (const one of values) {
      if (option.values === undefined || option.values.includes(String(one))) continue;
      throw usage(
        option.name === 'empty-ns' ? `namespace ${JSON.stringify(one)} is not supported` : option.name === 'log-format' ? `invalid log-format: ${one}` : `cannot use --${option.name} ${one}: only ${option.values.join(', ')} is built`,
      );
    }
  }
}

export function usage(message: string, hint?: string): StasisError {
  return new StasisError({ code: 'USAGE', message, ...(hint === undefined ? {} : { hint }) });
}
