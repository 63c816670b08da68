// Command lines in all the spellings that callers of runc use, brought into
// one: "-no-subreaper", "--flag value", "--flag=value", "-flag=value", flags
// after the container id, global flags after the verb. Go's two flag packages
// accept all of these, getopt and yargs do not.
import { StasisError } from '../runtime-shim/errors/index.js';
import type { RuntimeOption } from '../oci-spec/runtime-options.js';

/** Options under their names: true, a text, or a list of texts; what was not given is absent. */
export type Given = Readonly<Record<string, boolean | string | readonly string[]>>;

export interface Arguments {
  readonly given: Given;
  readonly positionals: readonly string[];
}

/** Throws USAGE as runc words it. An option that is given twice counts as it was given last. */
export function parseArguments(words: readonly string[], options: readonly RuntimeOption[]): Arguments {
  const byName = new Map<string, RuntimeOption>();
  for (const option of options) {
    byName.set(option.name, option);
    if (option.alias !== undefined) byName.set(option.alias, option);
  }
  const given: Record<string, boolean | string | readonly string[]> = {};
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
    const [name, ...rest] = word.replace(/^--?/, '').split('=');
    const option = byName.get(name!);
    if (option === undefined) throw usage(`flag provided but not defined: -${name}`);
    const inline = rest.length === 0 ? undefined : rest.join('=');
    if (option.type === 'boolean') {
      given[option.name] = inline === undefined || booleanValue(option.name, inline);
      continue;
    }
    if (inline === undefined && option.optionalValue?.test(words[at + 1] ?? '') === false) {
      given[option.name] = '';
      continue;
    }
    const value = inline ?? words[(at += 1)];
    if (value === undefined) throw usage(`flag needs an argument: --${option.name}`);
    given[option.name] =
      option.type === 'list' ? [...((given[option.name] as readonly string[] | undefined) ?? []), value] : value;
  }
  return { given, positionals };
}

function booleanValue(name: string, value: string): boolean {
  if (/^(true|t|1)$/i.test(value)) return true;
  if (/^(false|f|0)$/i.test(value)) return false;
  throw usage(`invalid boolean value "${value}" for -${name}`);
}

/** Refuses by name what is not built and what has no such value; then nothing that was given is ignored. */
export function refuseUnbuilt(given: Given, options: readonly RuntimeOption[]): void {
  for (const option of options) {
    const value = given[option.name];
    const values = (Array.isArray(value) ? value : [value]).filter(
      (one) => one !== undefined && one !== false && one !== '',
    );
    if (values.length === 0) continue;
    if (option.refused !== undefined) {
      throw new StasisError({ code: 'OPTION_NOT_BUILT', message: `cannot use --${option.name}: ${option.refused}` });
    }
    for (const one of values) {
      if (option.values === undefined || option.values.includes(String(one))) continue;
      if (option.optionalValue?.test(String(one)) === true) continue;
      throw usage(
        option.name === 'empty-ns'
          ? `namespace ${JSON.stringify(one)} is not supported`
          : option.name === 'log-format'
            ? `invalid log-format: ${one}`
            : option.known !== undefined
              ? `cannot use --${option.name} ${one}: there are ${option.known}`
              : `cannot use --${option.name} ${one}: only ${option.values.join(', ')} is built`,
      );
    }
  }
}

export function usage(message: string, hint?: string): StasisError {
  return new StasisError({ code: 'USAGE', message, ...(hint === undefined ? {} : { hint }) });
}
