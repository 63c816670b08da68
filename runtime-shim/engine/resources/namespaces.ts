// Which namespaces the tree has, which of them are new on restore, and how the
// root task gets into the others. What is inside of each is in its own room.
import type { CompileContext } from '../compile-context.js';
import type { EncodeContext } from '../encode-context.js';
import { Phase } from '../plan/builder.js';
import type { Room } from '../room.js';
import { inheritedSlot, taskPhrase } from './file-common.js';

export type NamespaceKind = 'pid' | 'net' | 'ipc' | 'uts' | 'mnt' | 'user' | 'cgroup' | 'time';

export const cloneFlagOf: Readonly<Record<NamespaceKind, number>> = {
  pid: 0x20000000,
  net: 0x40000000,
  ipc: 0x08000000,
  uts: 0x04000000,
  mnt: 0x00020000,
  user: 0x10000000,
  cgroup: 0x02000000,
  time: 0x00000080,
};

const kinds = Object.keys(cloneFlagOf) as NamespaceKind[];

/** Made with the root task itself; net and cgroup are unshared later, at the right moment. */
const madeByClone: ReadonlySet<NamespaceKind> = new Set(['pid', 'ipc', 'uts', 'mnt', 'user']);

export interface CapturedNamespace {
  readonly inode: bigint;
  /** Number in the names of its images. */
  readonly id: number;
  /** The engine's own: there is no image of it. */
  readonly own: boolean;
  /** The restoring side provides it under this key. */
  readonly externalKey: string | undefined;
}

/** The root task's namespace of a kind; all tasks live in the same ones, or were refused. */
export function namespaceOf(ctx: EncodeContext, kind: NamespaceKind): CapturedNamespace | undefined {
  const found = ctx.root.raw.namespaces.find((namespace) => namespace.kind === kind);
  if (found === undefined) return undefined;
  return {
    inode: found.inode,
    id: ctx.namespaceId(kind, found.inode),
    own: ctx.isOwnNamespace(kind, found.inode),
    externalKey: ctx.options.externalNamespaces.get(kind),
  };
}

/** Id of the root task's namespace in the images; undefined where it was that of the engine at checkpoint. */
export function imageNamespaceId(ctx: CompileContext, kind: NamespaceKind): number | undefined {
  const field = `${kind}_ns_id` as const;
  const id = ctx.root.image.ids?.[field];
  if (id === undefined || id === 0 || id === ctx.images.inventory.root_ids?.[field]) return undefined;
  return id;
}

/** Descriptor of a namespace to join instead of making one. */
export function joinedNamespace(ctx: CompileContext, kind: NamespaceKind): ReturnType<typeof inheritedSlot> {
  const given = ctx.options.joinNamespaces.get(kind);
  if (given !== undefined) return ctx.plan.external(`namespace ${kind}`, given);
  const key = externalKeyOf(ctx, kind);
  return key === undefined ? undefined : inheritedSlot(ctx, [key], { needed: true });
}

/** Key under which the images expect an external namespace. */
function externalKeyOf(ctx: CompileContext, kind: NamespaceKind): string | undefined {
  const id = imageNamespaceId(ctx, kind);
  if (id === undefined) return undefined;
  if (kind === 'net') return ctx.images.set.maybe('netns', id)?.ext_key;
  if (kind === 'pid') return ctx.images.set.maybe('pidns', id)?.ext_key;
  return undefined;
}

/** Does the root task get a new namespace of this kind? What the spec says goes before what the images say. */
export function createsNamespace(ctx: CompileContext, kind: NamespaceKind): boolean {
  if (joinedNamespace(ctx, kind) !== undefined) return false;
  const wanted = ctx.options.newNamespaces;
  if (wanted !== undefined) return wanted.has(kind);
  return imageNamespaceId(ctx, kind) !== undefined && externalKeyOf(ctx, kind) === undefined;
}

export const namespacesRoom: Room = {
  kind: 'namespaces',

  encode(ctx) {
    for (const task of ctx.tasks) {
      if (task.raw.zombie || task === ctx.root) continue;
      for (const kind of kinds) {
        const own = task.raw.namespaces.find((namespace) => namespace.kind === kind);
        const root = ctx.root.raw.namespaces.find((namespace) => namespace.kind === kind);
        if (own === undefined || own.inode === root?.inode) continue;
        ctx.object(
          'CAPTURE_NAMESPACE_UNSUPPORTED',
          `${taskPhrase(task)} lives in another ${kind} namespace than the first process of the tree`,
          ctx.subjectOfTask(task),
        );
      }
    }
    const time = namespaceOf(ctx, 'time');
    if (time !== undefined && !time.own) {
      ctx.object(
        'CAPTURE_NAMESPACE_UNSUPPORTED',
        'the tree has a time namespace of its own, whose clocks are not carried',
        ctx.subjectOfTask(ctx.root),
      );
    }
    const pid = namespaceOf(ctx, 'pid');
    if (pid?.externalKey !== undefined) ctx.images.add('pidns', pid.id, { ext_key: pid.externalKey });
  },

  compile(ctx) {
    const { builder } = ctx.root;
    // Every directory and device that steps make has exactly the mode they name; each task sets its own in DESCRIPTORS.
    builder.step(Phase.NAMESPACES, 'umask', [0], { from: 'namespaces' });
    for (const kind of kinds) {
      const joined = joinedNamespace(ctx, kind);
      if (joined !== undefined) {
        if (kind === 'pid' || kind === 'mnt') {
          ctx.object(
            'IMAGE_FEATURE_UNSUPPORTED',
            `the container joins a ${kind} namespace by path, which is not built`,
            {},
          );
          continue;
        }
        builder.step(Phase.NAMESPACES, 'setns', [joined, cloneFlagOf[kind]], { from: `namespace ${kind}`, note: kind });
      } else if (createsNamespace(ctx, kind)) {
        if (kind === 'time')
          ctx.object('IMAGE_FEATURE_UNSUPPORTED', 'the container has a time namespace, which is not built', {});
        else if (madeByClone.has(kind)) builder.cloneFlags |= BigInt(cloneFlagOf[kind]);
      } else if (kind === 'net' && externalKeyOf(ctx, kind) !== undefined && ctx.options.newNamespaces === undefined) {
        ctx.object(
          'IMAGE_FEATURE_UNSUPPORTED',
          `the images expect a network namespace "${externalKeyOf(ctx, kind)}", and none is given`,
          {},
        );
      }
    }
  },
};
