// Style, tested: layers, generated files, formatting, commit messages, the form
// of the changelog. `--write` formats instead of complaining (npm run format).
// Reads the repository and its git history; types are checked by the build.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { dirname, join, posix, relative } from 'node:path';
import { repository } from '../e2e/support/paths.js';
import { mayImport, mayInclude, rawSystemCallPlaces, type LayerTable } from './layers.js';

type Check = () => string[];

const checks: Readonly<Record<string, Check>> = {
  'TypeScript layers': checkImports,
  'native layers': checkIncludes,
  'raw system calls': checkRawSystemCalls,
  'generated files': checkGenerated,
  'formatting of TypeScript, JSON and Markdown': () => prettier('--check'),
  'formatting of C++': () => clangFormat(['--dry-run', '-Werror']),
  'commit messages': checkCommitMessages,
  changelog: checkChangelog,
};

function main(): void {
  if (process.argv.includes('--write')) {
    prettier('--write');
    clangFormat(['-i']);
    return;
  }
  let complaints = 0;
  for (const [name, check] of Object.entries(checks)) {
    const found = check();
    console.log(`   ${found.length === 0 ? '✔' : '✘'} ${name}`);
    for (const complaint of found) console.log(`     ${complaint}`);
    complaints += found.length;
  }
  process.exitCode = complaints === 0 ? 0 : 1;
}

/** Imports between folders of TypeScript, against the table. */
function checkImports(): string[] {
  return trackedFiles(/\.ts$/).flatMap((file) => {
    const text = readFileSync(join(repository, file), 'utf8');
    const specifiers = [...text.matchAll(/(?:^|[\s;])(?:import|from)\s*\(?\s*'(\.[^']*)'/g)].map(
      (match) => match[1] ?? '',
    );
    return specifiers.flatMap((specifier) => {
      const imported = posix.normalize(posix.join(dirname(file), specifier));
      return judge(mayImport, file, imported);
    });
  });
}

/** #include between folders of nativecore, against the table. */
function checkIncludes(): string[] {
  return trackedFiles(/^nativecore\/.*\.(cc|h|S)$/).flatMap((file) => {
    // Test programs link everything and may look everywhere.
    if (file.endsWith('_test.cc')) return [];
    const text = readFileSync(join(repository, file), 'utf8');
    return [...text.matchAll(/^#include "([^"]+)"/gm)].flatMap((match) => {
      const included = match[1] ?? '';
      const local = `${dirname(file)}/${included}`;
      return judge(mayInclude, file, existsSync(join(repository, local)) ? local : `nativecore/${included}`);
    });
  });
}

function judge(table: LayerTable, file: string, used: string): string[] {
  const from = layerOf(table, file);
  const to = layerOf(table, used);
  if (from === undefined)
    return [`${file}: its folder is in no layer of hack/layers.ts; add it there and to ARCHITECTURE.md`];
  if (to === undefined) return [`${file}: uses ${used}, which is in no layer`];
  if (from === to || table[from]?.includes(to) === true) return [];
  return [`${file}: uses ${used}, but ${from} may use only ${table[from]?.join(', ') || 'itself'}`];
}

/** The longest folder (or file) of the table that the path lies in. */
function layerOf(table: LayerTable, path: string): string | undefined {
  return Object.keys(table)
    .filter((layer) => path === layer || path.startsWith(`${layer}/`) || path.replace(/\.js$/, '.ts') === layer)
    .sort((one, other) => other.length - one.length)[0];
}

/** Calls that bypass the wrappers of base/sys.h: each wrapper states errors and interruption once. */
function checkRawSystemCalls(): string[] {
  return trackedFiles(/^nativecore\/.*\.(cc|h)$/).flatMap((file) => {
    if (
      rawSystemCallPlaces.some((allowed) => file.startsWith(allowed)) ||
      /(_(test|blob)\.cc|\/testing_\w+\.h)$/.test(file)
    )
      return [];
    return readFileSync(join(repository, file), 'utf8')
      .split('\n')
      .flatMap((line, index) =>
        /(^|[^\w:])::(open|openat|ptrace|syscall)\(/.test(line)
          ? [`${file}:${index + 1}: calls ${line.trim()} itself; use a wrapper of base/sys.h`]
          : [],
      );
  });
}

function checkGenerated(): string[] {
  return complaintsOf(process.execPath, ['hack/generate.mjs', '--check']);
}

function prettier(mode: '--check' | '--write'): string[] {
  const result = tool('node_modules/.bin/prettier', [mode, '--log-level', 'warn', '.']);
  if (result.status === 0) return [];
  const files = result.output.split('\n').filter((line) => line.startsWith('[') && !line.includes('Code style'));
  return files.map((line) => `${line.replace(/^\[\w+\] /, '')} is not formatted: npm run format`);
}

function clangFormat(mode: readonly string[]): string[] {
  const files = trackedFiles(/^(nativecore\/.*\.(cc|h)|e2e\/targets\/.*\.[ch])$/);
  if (files.length === 0) return [];
  const result = tool('clang-format', [...mode, ...files]);
  if (result.status === 0) return [];
  const places = [...result.output.matchAll(/^(\S+?):(\d+):\d+: error/gm)].map((match) => `${match[1]}:${match[2]}`);
  const perFile = new Map(places.map((place) => [place.split(':')[0] ?? '', place]));
  return perFile.size === 0
    ? [result.output]
    : [...perFile.values()].map((place) => `${place} is not formatted: npm run format`);
}

/** `area: imperative`, at most 72 columns; of the commits that are not published yet and can still be changed. */
function checkCommitMessages(): string[] {
  const published = tool('git', ['rev-parse', '--verify', '--quiet', 'origin/HEAD']).status === 0;
  const range = published ? ['origin/HEAD..HEAD'] : ['-20'];
  const result = tool('git', ['log', ...range, '--no-merges', '--format=%h%x00%s%x00%b%x01']);
  // A source archive without history has nothing to check.
  if (result.status !== 0) return [];
  return result.output
    .split('\x01')
    .map((entry) => entry.trim().split('\0'))
    .filter((entry): entry is [string, string, string] => entry.length === 3)
    .flatMap(([hash, subject]) => {
      const complaints: string[] = [];
      if (!/^[a-z0-9./{},_ -]+: \S/.test(subject))
        complaints.push(`${hash} "${subject}": not of the form "area: imperative"`);
      if (subject.length > 72) complaints.push(`${hash} "${subject}": ${subject.length} columns, at most 72 wanted`);
      if (subject.endsWith('.')) complaints.push(`${hash} "${subject}": no full stop at the end`);
      return complaints;
    });
}

/** Keep a Changelog: versions as headings with dates, known sections, entries as list items. */
function checkChangelog(): string[] {
  const lines = readFileSync(join(repository, 'CHANGELOG.md'), 'utf8').split('\n');
  const complaints: string[] = [];
  if (!lines.some((line) => line === '## [Unreleased]'))
    complaints.push('CHANGELOG.md has no "## [Unreleased]" heading');
  lines.forEach((line, index) => {
    const where = `CHANGELOG.md:${index + 1}`;
    if (line.startsWith('## ') && !/^## \[(Unreleased|\d+\.\d+\.\d+)\]( - \d{4}-\d\d-\d\d)?$/.test(line)) {
      complaints.push(`${where}: "${line}" is not a version with its date`);
    }
    if (line.startsWith('### ') && !/^### (Added|Changed|Deprecated|Removed|Fixed|Security)$/.test(line)) {
      complaints.push(`${where}: "${line}" is none of Added, Changed, Deprecated, Removed, Fixed, Security`);
    }
  });
  return complaints;
}

interface ToolResult {
  readonly status: number;
  readonly output: string;
}

function tool(program: string, args: readonly string[]): ToolResult {
  const result = spawnSync(program, args, { cwd: repository, encoding: 'utf8', maxBuffer: 1 << 28 });
  if (result.error !== undefined) return { status: 127, output: `cannot run ${program}: ${result.error.message}` };
  return { status: result.status ?? 128, output: `${result.stdout}${result.stderr}` };
}

function complaintsOf(program: string, args: readonly string[]): string[] {
  const result = tool(program, args);
  return result.status === 0 ? [] : result.output.trimEnd().split('\n');
}

/** Files of the project whose path matches; build results and dependencies are none. */
function trackedFiles(pattern: RegExp): string[] {
  const found: string[] = [];
  const visit = (folder: string): void => {
    for (const entry of readdirSync(join(repository, folder), { withFileTypes: true })) {
      const path = join(folder, entry.name);
      if (entry.isDirectory() && !/^(node_modules|build|\.git)$/.test(entry.name)) visit(path);
      else if (entry.isFile() && pattern.test(path)) found.push(relative('.', path));
    }
  };
  visit('.');
  return found.sort();
}

main();
