// checkpoint <container-id>: freeze a running container and write its images.
import { resolve } from 'node:path';
import { checkpointOptions } from '../../../oci-spec/runtime-options.js';
import { findStateRoot } from '../../../runtime-shim/container/index.js';
import { checkpointContainer } from '../../../runtime-shim/checkpoint.js';
import { checkpointInRounds } from '../../../runtime-shim/checkpoint-rounds.js';
import { checkpointDefaults } from '../../../runtime-shim/checkpoint-request.js';
import { jsonText } from '../../render/table.js';
import { requireRoot } from '../../require-root.js';
import { compressionOfName, compressions, type Compression } from '../../../runtime-shim/archive/compression.js';
import { kStandardOutput } from '../../../runtime-shim/archive/archive-file.js';
import type { ArchiveRequest, PageCompression } from '../../../runtime-shim/checkpoint-request.js';
import { usage, type Given } from '../../arguments.js';
import { oneLine } from '../../render/error.js';
import { showProgress } from '../../render/progress.js';
import { flag, text, type Command, type CommandContext } from '../command.js';

export const checkpointCommand: Command = {
  verb: 'checkpoint',
  describe: 'Freeze a running container, write its state to images, and end it.',
  positional: 'container-id',
  options: checkpointOptions,
  runtimeVerb: true,
  run: async (given, id, context) => {
    requireRoot(`checkpoint container ${JSON.stringify(id)}`);
    const path = (name: string): string | undefined => {
      const value = text(given, name);
      return value === undefined ? undefined : resolve(context.cwd, value);
    };
    const archive = archiveRequest(given, context);
    const incremental = incrementalRequest(given);
    const request = {
      ...checkpointDefaults,
      root: context.globals.root ?? findStateRoot(id, context.environment),
      id,
      imagePath: path('image-path') ?? resolve(context.cwd, 'checkpoint'),
      workPath: path('work-path'),
      leaveRunning: flag(given, 'leave-running') || incremental.preDump,
      ...incremental,
      ...(archive === undefined ? pageCompression(given) : {}),
      sync: !flag(given, 'no-fsync'),
      directIo: flag(given, 'direct-io'),
      encode: {
        shellJob: flag(given, 'shell-job'),
        externalUnixSockets: flag(given, 'ext-unix-sk'),
      },
      tcp: flag(given, 'tcp-established') ? ('established' as const) : undefined,
      signal: context.signal,
    };
    const result = await showProgress(text(given, 'progress') === 'json', (onProgress) => {
      if (archive === undefined)
        return (flag(given, 'iterate') ? checkpointInRounds : checkpointContainer)({ ...request, onProgress });
      const at = (doneBytes: number, totalBytes: number): void =>
        onProgress?.({ phase: 'archive', doneBytes, totalBytes });
      return checkpointContainer({
        ...request,
        onProgress,
        archive: { ...archive, target: { ...archive.target, onProgress: at } },
      });
    });
    // A person reads along: on a terminal, and wherever archives are written.
    const isRead = archive !== undefined || process.stderr.isTTY;
    for (const { message } of result.degradations) {
      context.warn(message);
      if (isRead) process.stderr.write(`warning: ${oneLine(message)}\n`);
    }
    for (const remark of result.remarks) if (isRead) process.stderr.write(`note: ${oneLine(remark)}\n`);
    if (flag(given, 'json')) context.print(jsonText(result));
    return 0;
  },
};

function incrementalRequest(given: Given): { readonly preDump: boolean; readonly parentPath?: string } {
  const preDump = flag(given, 'pre-dump');
  const parentPath = text(given, 'parent-path');
  const iterate = flag(given, 'iterate');
  const used = preDump ? '--pre-dump' : parentPath !== undefined ? '--parent-path' : iterate ? '--iterate' : undefined;
  if (used !== undefined && text(given, 'archive') !== undefined)
    throw usage(`cannot use ${used} with --archive`, 'an archive holds a whole checkpoint: leave the option out');
  if (iterate && (preDump || parentPath !== undefined))
    throw usage('cannot use --iterate with --pre-dump or --parent-path: it makes the rounds itself', 'leave them out');
  return parentPath === undefined ? { preDump } : { preDump, parentPath };
}

const forArchives = ['lower', 'image', 'ignore-rootfs'] as const;

function archiveRequest(given: Given, context: CommandContext): ArchiveRequest | undefined {
  const name = text(given, 'archive');
  if (name === undefined) {
    const alone = forArchives.find((option) => given[option] !== undefined);
    if (alone !== undefined) throw usage(`cannot use --${alone} without --archive`);
    return undefined;
  }
  if (flag(given, 'direct-io'))
    throw usage('cannot use --direct-io with --archive: what goes into an archive is read back through the page cache');
  if (text(given, 'image-path') !== undefined) throw usage('cannot use --archive and --image-path together');
  const toStandardOutput = name === kStandardOutput;
  if (toStandardOutput && process.stdout.isTTY)
    throw usage('cannot write an archive to a terminal', 'redirect standard output to a file or a program');
  if (toStandardOutput && flag(given, 'json'))
    throw usage('cannot use --json with --archive -: both go to standard output');
  const lower = text(given, 'lower');
  return {
    target: {
      file: toStandardOutput ? name : resolve(context.cwd, name),
      compression: archiveCompression(given) ?? compressionOfName(name),
    },
    ignoreRootfs: flag(given, 'ignore-rootfs'),
    lower: lower === undefined ? undefined : resolve(context.cwd, lower),
    image: text(given, 'image') ?? '',
  };
}

function archiveCompression(given: Given): Compression | undefined {
  const value = text(given, 'compress');
  if (value === undefined) return undefined;
  const found = compressions.find((compression) => compression === value);
  if (found === undefined)
    throw usage(`cannot use --compress ${value} with --archive: only ${compressions.join(', ')}`);
  return found;
}

const kHighestLevel = 19;

/** Fast ones are meant: a container that ends waits for it, and a disk is not much slower than they are. */
function pageCompression(given: Given): { readonly pageCompression?: PageCompression } {
  if (given['compress'] === undefined) return {};
  const [codec, level] = (text(given, 'compress') ?? 'lz4').split(':');
  if (codec === 'none') return {};
  if (codec === 'lz4') return { pageCompression: { codec, level: 0 } };
  if (codec !== 'zstd') throw usage(`cannot use --compress ${codec} without --archive: page files are lz4 or zstd`);
  const wanted = Number(level ?? 1);
  if (wanted < 1 || wanted > kHighestLevel)
    throw usage(`cannot use --compress zstd:${level}: levels are 1 to ${kHighestLevel}`);
  return { pageCompression: { codec, level: wanted } };
}
