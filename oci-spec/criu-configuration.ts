// CRIU's configuration files: one option a line, without dashes, with a value
// or without. Runtimes have CRIU read one that its user wrote, because managers
// pass no options on.

export interface ConfiguredOption {
  readonly name: string;
  /** undefined: none is given. */
  readonly value: string | undefined;
  /** From 1. */
  readonly line: number;
}

export class CriuConfigurationError extends Error {}

/** Names the file that is read for a container: what it says is "" where none is to be read. */
export const kCriuConfigAnnotation = 'org.criu.config';

// Of a file that is none of these, a message shows nothing: it may be anybody's, and the message goes far.
const optionName = String.raw`-{0,2}[a-z][a-z0-9-]{0,40}`;
const blanks = String.raw`[ \t]+`;
const plain = String.raw`[^ \t"#]+`;
const quoted = String.raw`"(?:[^"\\]|\\.)*"`;
const lineForm = new RegExp(`^(${optionName})(?:${blanks}(${quoted}|${plain}))?(?:${blanks})?(?:#.*)?$`);

/** Throws CriuConfigurationError, with the number of the line. */
export function parseCriuConfiguration(text: string): ConfiguredOption[] {
  const options: ConfiguredOption[] = [];
  text.split('\n').forEach((raw, index) => {
    const content = raw.replace(/^[ \t]+/, '').replace(/\r$/, '');
    if (content === '' || content.startsWith('#')) return;
    const line = index + 1;
    const [, name, value] = lineForm.exec(content) ?? [];
    if (name === undefined) throw new CriuConfigurationError(`line ${line} is not an option with at most one value`);
    if (name.startsWith('-'))
      throw new CriuConfigurationError(`line ${line} begins with a dash: options have none here`);
    options.push({
      name,
      value: value?.startsWith('"') === true ? value.slice(1, -1).replaceAll('\\"', '"') : value,
      line,
    });
  });
  return options;
}
