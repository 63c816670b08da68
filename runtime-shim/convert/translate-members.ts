// Members of one dialect made of those of another. What the new dialect has no
// place for is said, and never dropped in silence.
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  formatConfigDump,
  isPodmanConfig,
  logMembers,
  member,
  membersOf,
  parseConfigDump,
  parseDeletedFiles,
  type ConfigDump,
  type Dialect,
} from '../../oci-spec/checkpoint-archive.js';
import { FormatError } from '../../oci-spec/json.js';
import { parseRuntimeConfig } from '../../oci-spec/runtime-config.js';
import { alterPodmanConfig, podmanContainer, type PodmanWishes } from '../archive/podman-container.js';
import { convertRootfsTar } from '../archive/rootfs-tar.js';
import { StasisError, fileError } from '../errors/index.js';
import { containerdStatus, containerdStatusDump } from './containerd-status.js';
import type { TargetForm } from './forms.js';
import { textOf, type LoadedCheckpoint } from './load-checkpoint.js';
import { bindMountsOf, specFor } from './manager-spec.js';

export interface TranslationRequest {
  /** Absolute. */
  readonly source: string;
  readonly to: TargetForm;
  /** Absolute: config.json for sources that have none. */
  readonly spec: string | undefined;
  readonly name: string;
  readonly image: string;
  /** The rest for podman only. */
  readonly imageId: string;
  readonly runtime: string;
  readonly network: string;
}

/** The members of the other dialect; what is made anew goes into `target`. */
export async function translateMembers(
  loaded: LoadedCheckpoint,
  to: Dialect,
  request: TranslationRequest,
  target: string,
  notes: string[],
): Promise<Map<string, string>> {
  const members = new Map<string, string>();
  const put = (name: string, text: string): void => {
    const path = join(target, name);
    writeFileSync(path, text, { mode: 0o600 });
    members.set(name, path);
  };
  for (const [name, path] of loaded.files) if (name.startsWith(`${member.images}/`)) members.set(name, path);

  const specText = request.spec === undefined ? textOf(loaded, member.spec) : readSpec(request.spec);
  if (specText === undefined) {
    throw new StasisError({
      code: 'ARCHIVE_UNSUPPORTED',
      message: `cannot pack ${request.source} for ${request.to}: a directory of images has no spec, and every reader of archives wants one`,
      subject: { path: request.source },
      hint: "name the container's config.json with --spec",
    });
  }
  const configText = textOf(loaded, member.config);
  const config = configOf(configText, request);
  const same = loaded.dialect === to && configText !== undefined && request.spec === undefined;
  if (to === 'podman') {
    const { config: podmanConfig, spec, notes: more } = forPodman(loaded, configText, specText, config, request);
    put(member.config, podmanConfig);
    put(member.spec, spec);
    notes.push(...more);
  } else {
    put(member.spec, same ? specText : specFor(to, specText, config));
    put(member.config, same ? configText : formatConfigDump(config));
  }
  await translateRootfs(loaded, to, target, members, notes);
  translateLog(loaded, to, members);
  const known = membersOf[to];
  for (const [name, path] of loaded.files) {
    if (members.has(name) || name.startsWith(`${member.images}/`) || isHandled(name)) continue;
    const top = name.split('/')[0]!;
    if (known.has(top)) members.set(name, path);
    else notes.push(`${to} has no place for ${name}`);
  }
  if (to === 'cri-o' && !members.has(member.bindMounts)) put(member.bindMounts, bindMountsOf(specText));
  if (to === 'containerd') {
    if (!members.has(member.containerdStatus)) put(member.containerdStatus, containerdStatus(config));
    if (!members.has(member.containerdStatusDump)) put(member.containerdStatusDump, containerdStatusDump(config));
  }
  return members;
}

/** podman's own container stays what it is; any other is made into one. */
function forPodman(
  loaded: LoadedCheckpoint,
  configText: string | undefined,
  specText: string,
  config: ConfigDump,
  request: TranslationRequest,
): ReturnType<typeof podmanContainer> {
  const given = (value: string): string | undefined => (value === '' ? undefined : value);
  const wishes: PodmanWishes = {
    name: given(request.name),
    image: given(request.image),
    imageId: given(request.imageId),
    runtime: given(request.runtime),
    network: given(request.network),
  };
  if (configText === undefined || !isPodmanConfig(configText)) {
    const source = { path: request.source, hasDevShm: loaded.files.has(member.devShm) };
    return podmanContainer(config, specText, source, wishes);
  }
  const spec = loaded.dialect === 'podman' ? specText : specFor('podman', specText, config);
  return { ...alterPodmanConfig(configText, wishes), spec };
}

/** Members that are translated or made anew, and not carried as they are. */
function isHandled(name: string): boolean {
  const handled: readonly string[] = [
    member.manifest,
    member.config,
    member.spec,
    member.rootfsDiff,
    member.deletedFiles,
    ...Object.values(logMembers),
  ];
  return handled.includes(name);
}

async function translateRootfs(
  loaded: LoadedCheckpoint,
  to: Dialect,
  target: string,
  members: Map<string, string>,
  notes: string[],
): Promise<void> {
  const source = loaded.files.get(member.rootfsDiff);
  const deletedText = textOf(loaded, member.deletedFiles);
  if (source === undefined && deletedText === undefined) return;
  const wasInside = loaded.dialect === 'containerd';
  const isInside = to === 'containerd';
  if (wasInside === isInside) {
    if (source !== undefined) members.set(member.rootfsDiff, source);
    const deleted = loaded.files.get(member.deletedFiles);
    if (deleted !== undefined && !isInside) members.set(member.deletedFiles, deleted);
    return;
  }
  const path = join(target, member.rootfsDiff);
  const form = isInside
    ? ({ whiteouts: 'inside', compression: 'gzip' } as const)
    : ({ whiteouts: 'beside', compression: 'none' } as const);
  const { deleted, lost } = await convertRootfsTar(source, parseDeletedFiles(deletedText ?? '[]'), path, form);
  members.set(member.rootfsDiff, path);
  for (const what of lost) notes.push(`${to} has no place in ${member.rootfsDiff} for ${what}`);
  if (isInside) return;
  const list = join(target, member.deletedFiles);
  writeFileSync(list, JSON.stringify(deleted), { mode: 0o600 });
  members.set(member.deletedFiles, list);
}

/** All three write lines of "time stream tag text". */
function translateLog(loaded: LoadedCheckpoint, to: Dialect, members: Map<string, string>): void {
  const source = Object.values(logMembers).find((name) => loaded.files.has(name));
  if (source === undefined) return;
  members.set(logMembers[to] ?? source, loaded.files.get(source)!);
}

function configOf(text: string | undefined, request: TranslationRequest): ConfigDump {
  const known = text === undefined ? undefined : parseConfigDump(text);
  const now = new Date().toISOString();
  return {
    id: known?.id ?? request.name,
    name: request.name || (known?.name ?? ''),
    rootfsImage: request.image || (known?.rootfsImage ?? ''),
    rootfsImageRef: known?.rootfsImageRef ?? '',
    rootfsImageName: request.image || (known?.rootfsImageName ?? ''),
    runtime: known?.runtime ?? 'runc',
    createdTime: known?.createdTime ?? now,
    checkpointedTime: known?.checkpointedTime || now,
  };
}

function readSpec(path: string): string {
  try {
    const text = readFileSync(path, 'utf8');
    parseRuntimeConfig(text);
    return text;
  } catch (error) {
    if (error instanceof FormatError) {
      throw new StasisError({
        code: 'BUNDLE_INVALID',
        message: `cannot read the spec ${path}: ${error.message}`,
        subject: { path },
        hint: 'give the config.json of the container',
      });
    }
    throw fileError(`cannot read the spec ${path}`, path, error);
  }
}
