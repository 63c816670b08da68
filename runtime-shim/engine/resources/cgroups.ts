// Cgroups: in which groups the tree is, as sets of memberships. Tasks in
// groups below the container's are refused. On restore the coordinator puts
// the root task into its groups before the first step, so that children are
// born there; here only the cgroup namespace is made, which must see them.
import type { cg_member_entry, cg_set_entry } from '../../../oci-spec/images/messages.js';
import type { CapturedTask, EncodeContext } from '../encode-context.js';
import { Phase } from '../plan/builder.js';
import type { Room } from '../room.js';
import { taskPhrase } from './file-common.js';
import { cloneFlagOf, createsNamespace, namespaceOf } from './namespaces.js';

const kOwnSet = 1;
const kTreeSet = 2;

/** One line of /proc/PID/cgroup: "4:memory:/a/b"; the unified hierarchy has no controllers. */
export interface CgroupMembership {
  /** "cpu,cpuacct", "name=systemd", "" */
  readonly controllers: string;
  readonly path: string;
}

export function parseCgroups(text: Uint8Array): CgroupMembership[] {
  return Buffer.from(text)
    .toString('utf8')
    .split('\n')
    .flatMap((line) => {
      const match = /^\d+:([^:]*):(.*)$/.exec(line);
      return match === null ? [] : [{ controllers: match[1] ?? '', path: match[2] ?? '' }];
    })
    .sort((a, b) => (a.controllers < b.controllers ? -1 : a.controllers > b.controllers ? 1 : 0));
}

export const cgroupsRoom: Room = {
  kind: 'cgroups',

  encode(ctx) {
    const own = parseCgroups(ctx.capture.host?.ownCgroup ?? new Uint8Array(0));
    const tree = parseCgroups(ctx.root.raw.cgroup);
    const same = sameGroups(own, tree);
    const set = same ? kOwnSet : kTreeSet;
    ctx.inventory.root_cg_set = kOwnSet;
    for (const task of ctx.tasks) {
      if (task.raw.zombie) continue;
      ctx.draft(task).core.tc.cg_set = set;
      objectToOtherGroups(task, tree, ctx);
    }
    const sets: cg_set_entry[] = [{ id: kOwnSet, ctls: own.map(memberOf) }];
    if (!same) {
      const namespace = namespaceOf(ctx, 'cgroup');
      const hasNamespace = namespace !== undefined && !namespace.own;
      sets.push({
        id: kTreeSet,
        ctls: tree.map((member) => ({
          ...memberOf(member),
          ...(hasNamespace ? { cgns_prefix: member.path.length } : {}),
        })),
      });
    }
    ctx.images.add('cgroup', undefined, {
      sets,
      controllers: same
        ? []
        : tree
            .filter((member) => member.path !== '/')
            .map((member) => ({
              cnames: member.controllers.split(','),
              dirs: [
                { dir_name: member.path, children: [], properties: [], dir_perms: { mode: 0o755, uid: 0, gid: 0 } },
              ],
            })),
    });
  },

  compile(ctx) {
    if (!createsNamespace(ctx, 'cgroup')) return;
    ctx.root.builder.step(Phase.NAMESPACES, 'unshare', [cloneFlagOf.cgroup], { from: 'cgroup', note: 'cgroup' });
  },
};

function memberOf(member: CgroupMembership): cg_member_entry {
  return { name: member.controllers, path: member.path };
}

function sameGroups(a: readonly CgroupMembership[], b: readonly CgroupMembership[]): boolean {
  return (
    a.length === b.length &&
    a.every((member, index) => member.controllers === b[index]?.controllers && member.path === b[index].path)
  );
}

function objectToOtherGroups(task: CapturedTask, tree: readonly CgroupMembership[], ctx: EncodeContext): void {
  const places = [
    task.raw.cgroup,
    ...task.raw.threads.map((thread) => thread.cgroup).filter((text) => text.length > 0),
  ];
  for (const place of places) {
    const other = parseCgroups(place).find(
      (member) => tree.find((wanted) => wanted.controllers === member.controllers)?.path !== member.path,
    );
    if (other === undefined) continue;
    const hierarchy = other.controllers === '' ? 'cgroup v2' : other.controllers;
    ctx.object(
      'CAPTURE_CGROUP_UNSUPPORTED',
      `${taskPhrase(task)} is in cgroup "${other.path}" (${hierarchy}), not in that of the first process; groups inside of the container are not carried`,
      ctx.subjectOfTask(task),
    );
    return;
  }
}
