// What is in a checkpoint, as text for people.
import type { ImageDescription, ProcessDescription } from '../../runtime-shim/engine/index.js';
import { bytesText, table } from './table.js';

export function renderDescription(description: ImageDescription): string {
  const { processes, memory, files, mounts, namespaces, images } = description;
  const sections = [
    `checkpoint ${description.digest}: ${processes.length} process(es), ${memoryText(description)}, ${bytesText(description.totalBytes)} in ${images.length} images`,
    section('processes', [
      ['PID', 'PPID', 'UID', 'THREADS', 'STATE', 'SAVED', 'FDS', 'COMMAND'],
      ...processTree(processes),
    ]),
    section(
      'memory',
      memory.map((kind) => [kind.kind, `${kind.mappings} mapping(s)`, bytesText(kind.bytes)]),
    ),
    section(
      'files',
      files.map((file) => [String(file.id), file.kind, `${file.path ?? ''}${deletedText(file)}`]),
    ),
    section(
      'mounts',
      mounts.map((mount) => [
        mount.mountPoint,
        mount.external === undefined ? mount.source : `external ${mount.external}`,
      ]),
    ),
    section(
      'namespaces',
      Object.entries(namespaces).map(([kind, whose]) => [kind, whose]),
    ),
  ];
  return sections.filter((text) => text !== '').join('\n\n');
}

function deletedText({ content }: ImageDescription['files'][number]): string {
  return content === undefined ? '' : ` (deleted; ${bytesText(content.bytes)} in ${content.image})`;
}

function memoryText({ pages }: ImageDescription): string {
  const all = `${bytesText(pages.bytes)} of memory`;
  return pages.ofParentsBytes === 0n
    ? all
    : `${all} (${bytesText(pages.ofParentsBytes)} of it left to earlier checkpoints)`;
}

function section(title: string, rows: readonly (readonly string[])[]): string {
  if (rows.length === 0) return '';
  const lines = table(rows.map((row) => row.map(printable))).split('\n');
  return [title, ...lines.map((line) => `  ${line}`)].join('\n');
}

/** Parents before children, children indented. */
function processTree(processes: readonly ProcessDescription[]): string[][] {
  const depths = new Map<number, number>();
  return processes.map((process) => {
    const depth = (depths.get(process.ppid) ?? -1) + 1;
    depths.set(process.pid, depth);
    return [
      String(process.pid),
      String(process.ppid),
      process.uid === undefined ? '-' : String(process.uid),
      String(process.threads),
      process.state,
      bytesText(process.savedBytes),
      String(process.descriptors.length),
      `${'  '.repeat(depth)}${process.comm}`,
    ];
  });
}

/** Names come from the images: control characters must not reach the terminal. */
export function printable(text: string): string {
  // eslint-disable-next-line no-control-regex
  return text.replace(/[\u0000-\u001f\u007f-\u009f]/g, '?');
}
