// Who must be born where so that every task ends in its session, in its process
// group and under its parent. Pure: pids in, a family with an order of work out.
//
// A task can choose only to found a session; otherwise it is born into its
// creator's. So a creator that founds one (setsid) creates some children before
// and some after. Where that is not enough a helper is put in between: it has
// the session, creates the child, leaves, and the child goes to the nearest
// subreaper above, which is the wanted parent.

export interface Member {
  readonly pid: number;
  readonly ppid: number;
  readonly pgid: number;
  readonly sid: number;
  /** Dead: keeps its number, creates nobody. */
  readonly zombie?: boolean;
}

export type FamilyAction =
  { readonly kind: 'subreaper' | 'setsid' | 'own-group' } | { readonly kind: 'create'; readonly actor: Actor };

export interface Actor {
  /** undefined: any (outside a pid namespace of our own). */
  readonly pid: number | undefined;
  readonly member: Member | undefined;
  /** Who creates it; undefined for the root. */
  readonly creator: Actor | undefined;
  /** In this order, before the groups are joined. */
  readonly actions: readonly FamilyAction[];
  /** Group to join once all leaders exist. */
  readonly joinGroup: number | undefined;
  /** Group to move to after others have joined the one that this actor had to found. */
  readonly moveToGroup: number | undefined;
}

export interface Family {
  /** Root first, creators before what they create; helpers have no member. */
  readonly actors: readonly Actor[];
  readonly problems: readonly { readonly pid: number; readonly reason: string }[];
  /** The root's session or group comes from outside the tree. */
  readonly foreignSession: boolean;
  readonly foreignGroup: boolean;
}

interface MutableActor {
  pid: number | undefined;
  member: Member | undefined;
  creator: MutableActor | undefined;
  actions: FamilyAction[];
  joinGroup: number | undefined;
  moveToGroup: number | undefined;
  /** Session while it creates, in two stages. */
  before: MutableActor[];
  after: MutableActor[];
  isSubreaper: boolean;
  foundsSession: boolean;
  foundsGroup: boolean;
}

/** Plans the births. `ownPidNamespace`: helpers get numbers that nobody else needs, and the root adopts orphans by itself. */
export function planFamily(
  members: readonly Member[],
  ownPidNamespace: boolean,
  threadIds: Iterable<number> = [],
): Family {
  const first = members[0];
  if (first === undefined) return { actors: [], problems: [], foreignSession: false, foreignGroup: false };
  const root: Member = first;
  const problems: { pid: number; reason: string }[] = [];
  const byPid = new Map(members.map((member) => [member.pid, member]));
  const taken = new Set<number>(threadIds);
  for (const member of members) for (const id of [member.pid, member.pgid, member.sid]) taken.add(id);

  const foreignSession = root.sid !== root.pid && !byPid.has(root.sid);
  const foreignGroup = root.pgid !== root.pid && !byPid.has(root.pgid);
  const birth = birthSessions(members, byPid);

  const actors = new Map<number, MutableActor>();
  for (const member of members) actors.set(member.pid, newActor(member.pid, member));
  const actorOf = (pid: number): MutableActor => actors.get(pid) as MutableActor;
  const freePid = (): number | undefined => {
    if (!ownPidNamespace) return undefined;
    let pid = kFirstHelperPid;
    while (taken.has(pid)) pid += 1;
    taken.add(pid);
    return pid;
  };
  const isAncestor = (ancestor: number, pid: number): boolean => {
    for (let at = byPid.get(pid); at !== undefined; at = byPid.get(at.ppid)) if (at.ppid === ancestor) return true;
    return false;
  };
  /** Session -> who creates its members: the leader, or a helper that stands for it. */
  const sessionHelpers = new Map<number, MutableActor>();
  const adopt = (pid: number): void => {
    if (!(ownPidNamespace && pid === root.pid)) actorOf(pid).isSubreaper = true;
  };

  for (const member of members) {
    if (member === root) continue;
    const actor = actorOf(member.pid);
    const parent = byPid.get(member.ppid);
    if (parent === undefined) {
      problems.push({ pid: member.pid, reason: `its parent ${member.ppid} is not in the tree` });
      continue;
    }
    const wanted = birth.get(member.pid);
    const creator = actorOf(parent.pid);
    if (wanted === undefined || wanted === parent.sid) {
      link(creator, actor, 'after');
    } else if (parent.sid === parent.pid && wanted === birth.get(parent.pid)) {
      link(creator, actor, 'before');
    } else if (byPid.has(wanted)) {
      const leader = actorOf(wanted);
      if (leader.member?.zombie === true) {
        problems.push({ pid: member.pid, reason: `the leader of its session ${wanted} is a zombie` });
        continue;
      }
      if (!isAncestor(parent.pid, wanted)) {
        problems.push({
          pid: member.pid,
          reason: `session ${wanted} of this child of ${parent.pid} was founded outside of its parent's descendants`,
        });
        continue;
      }
      const helper = newActor(freePid(), undefined);
      link(leader, helper, 'after');
      link(helper, actor, 'after');
      adopt(parent.pid);
    } else {
      let helper = sessionHelpers.get(wanted);
      if (helper === undefined) {
        if (foreignSession && wanted === root.sid) {
          problems.push({ pid: member.pid, reason: `session ${wanted} belongs to a process outside of the tree` });
          continue;
        }
        helper = newActor(wanted, undefined);
        helper.foundsSession = true;
        sessionHelpers.set(wanted, helper);
        link(creator, helper, 'after');
      } else if (helper.creator !== creator) {
        problems.push({
          pid: member.pid,
          reason: `session ${wanted}, whose leader is gone, has members with different parents`,
        });
        continue;
      }
      link(helper, actor, 'after');
      adopt(parent.pid);
    }
  }

  planGroups();

  const ordered: Actor[] = [];
  const walk = (actor: MutableActor): void => {
    ordered.push(actor);
    if (actor.isSubreaper) actor.actions.push({ kind: 'subreaper' });
    for (const child of actor.before) actor.actions.push({ kind: 'create', actor: child });
    if (actor.foundsSession) actor.actions.push({ kind: 'setsid' });
    else if (actor.foundsGroup) actor.actions.push({ kind: 'own-group' });
    for (const child of actor.after) actor.actions.push({ kind: 'create', actor: child });
    for (const child of [...actor.before, ...actor.after]) walk(child);
  };
  walk(actorOf(root.pid));
  return { actors: ordered, problems, foreignSession, foreignGroup };

  function planGroups(): void {
    const groupHelpers = new Map<number, MutableActor>();
    for (const member of members) {
      const actor = actorOf(member.pid);
      actor.foundsSession = member.sid === member.pid;
      if (member.pgid === member.pid) {
        actor.foundsGroup = true;
        continue;
      }
      if (foreignGroup && member.pgid === root.pgid) continue;
      if (!byPid.has(member.pgid) && !groupHelpers.has(member.pgid) && sessionHelpers.get(member.pgid) === undefined) {
        // the leader has gone: somebody in the same session stands for it
        const host = byPid.has(member.sid)
          ? living(actorOf(member.sid))
          : (sessionHelpers.get(member.sid) ?? (foreignSession ? actorOf(root.pid) : undefined));
        if (host === undefined) {
          problems.push({ pid: member.pid, reason: `nobody in session ${member.sid} can found group ${member.pgid}` });
          continue;
        }
        const helper = newActor(member.pgid, undefined);
        helper.foundsGroup = true;
        groupHelpers.set(member.pgid, helper);
        link(host, helper, 'after');
      }
      const leader = byPid.get(member.pgid);
      if (leader !== undefined && leader.pgid !== leader.pid) actorOf(leader.pid).foundsGroup = true;
      if (actor.foundsGroup) actor.moveToGroup = member.pgid;
      else actor.joinGroup = member.pgid;
    }
    // a leader that has moved on is known as such only after all members were seen
    for (const actor of actors.values()) {
      if (actor.foundsGroup && actor.joinGroup !== undefined) {
        actor.moveToGroup = actor.joinGroup;
        actor.joinGroup = undefined;
      }
    }
  }
}

/** The first number that the kernel gives out after a wrap: below live only the first processes of a namespace. */
const kFirstHelperPid = 301;

/**
 * The session in which each task has to be born; undefined where it does not
 * matter, because the task founds its own and has no child in another.
 */
function birthSessions(
  members: readonly Member[],
  byPid: ReadonlyMap<number, Member>,
): ReadonlyMap<number, number | undefined> {
  const birth = new Map<number, number | undefined>();
  for (const member of members) birth.set(member.pid, member.sid === member.pid ? undefined : member.sid);
  // children before parents: a leader inherits the need of the first child that is not in its session
  for (const member of [...members].reverse()) {
    const parent = byPid.get(member.ppid);
    const wanted = birth.get(member.pid);
    if (parent === undefined || wanted === undefined || wanted === parent.sid) continue;
    if (parent.sid !== parent.pid || birth.get(parent.pid) !== undefined) continue;
    // only if the grandparent can have been in that session; else a helper is the way
    const grandparent = byPid.get(parent.ppid);
    // (session 0: outside of the pid namespace, where the root comes from)
    if (grandparent === undefined ? wanted === 0 : reachable(grandparent, wanted, byPid)) birth.set(parent.pid, wanted);
  }
  return birth;
}

/** Can `member` or somebody above create in `session`? */
function reachable(member: Member, session: number, byPid: ReadonlyMap<number, Member>): boolean {
  for (let at: Member | undefined = member; at !== undefined; at = byPid.get(at.ppid)) {
    if (at.sid === session) return true;
    if (at.sid !== at.pid) return false;
  }
  return false;
}

function newActor(pid: number | undefined, member: Member | undefined): MutableActor {
  return {
    pid,
    member,
    creator: undefined,
    actions: [],
    joinGroup: undefined,
    moveToGroup: undefined,
    before: [],
    after: [],
    isSubreaper: false,
    foundsSession: false,
    foundsGroup: false,
  };
}

function living(actor: MutableActor): MutableActor | undefined {
  return actor.member?.zombie === true ? undefined : actor;
}

function link(creator: MutableActor, child: MutableActor, when: 'before' | 'after'): void {
  child.creator = creator;
  creator[when].push(child);
}
