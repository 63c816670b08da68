// docs/errors.md, made of the table of codes.
import { errorCodes, exitStatusOfKind, factsOfCode, kindOfCode, type ErrorKind } from './codes.js';

const whoActs: Readonly<Record<ErrorKind, string>> = {
  usage: 'The caller: the request is malformed, or asks for what is not built.',
  unsupported:
    'The owner of the workload: it uses something that cannot be carried. [Limitations](limitations.md) has the list.',
  environment: 'The operator of the machine: kernel, permissions, space, files.',
  conflict: 'Nobody, or whoever works on the same container: something changed meanwhile.',
  corrupt: 'Whoever keeps the files: an image or a state file is not what it claims to be.',
  policy: "The author of the bundle's `config.json`: the images ask for more than it grants.",
  bug: 'The developers of stasis.',
};

const heading = `# Errors

Every error has a code, and every code a kind, which says who has to act. The verbs that stasis has of its own exit with the
status of the kind; the verbs of a container runtime exit with 1 for everything, as runc does. An error that stands for
several obstacles lists them all.

This page is made from \`runtime-shim/errors/codes.ts\`; its test tells when it is out of date.
`;

/** The whole page, formatted as prettier would. */
export function errorsMarkdown(): string {
  const kinds = Object.keys(exitStatusOfKind) as ErrorKind[];
  const sections = kinds.map((kind) => {
    const rows = errorCodes
      .filter((code) => kindOfCode(code) === kind)
      .map((code) => {
        const { meaning, remedy } = factsOfCode(code);
        return [`\`${code}\``, meaning, remedy ?? ''];
      });
    return `## ${kind} (exit status ${exitStatusOfKind[kind]})

${whoActs[kind]}

${table(['code', 'meaning', 'what to do'], rows)}`;
  });
  return `${[heading, ...sections].join('\n')}`;
}

function table(titles: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = titles.map((title, column) =>
    Math.max(title.length, ...rows.map((cells) => (cells[column] ?? '').length)),
  );
  const line = (cells: readonly string[]): string =>
    `| ${widths.map((width, column) => (cells[column] ?? '').padEnd(width)).join(' | ')} |\n`;
  return [line(titles), line(widths.map((width) => '-'.repeat(width))), ...rows.map(line)].join('');
}
