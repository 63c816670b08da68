import assert from 'node:assert/strict';
import { planFamily, type Actor, type Family, type Member } from './sessions.js';

const member = (pid: number, ppid: number, pgid: number, sid: number): Member => ({ pid, ppid, pgid, sid });

/** What the kernel would make of the plan: pid -> parent, group and session once all is done. */
function enact(family: Family): Map<number, Member> {
  interface Process {
    pid: number;
    parent: Process | undefined;
    pgid: number;
    sid: number;
    subreaper: boolean;
    helper: boolean;
    actor: Actor;
  }
  let nextPid = 100000;
  const processes: Process[] = [];
  const run = (actor: Actor, parent: Process | undefined): void => {
    const process: Process = {
      pid: actor.pid ?? nextPid++,
      parent,
      pgid: parent?.pgid ?? 0,
      sid: parent?.sid ?? 0,
      subreaper: false,
      helper: actor.member === undefined,
      actor,
    };
    processes.push(process);
    for (const action of actor.actions) {
      if (action.kind === 'subreaper') process.subreaper = true;
      else if (action.kind === 'create') run(action.actor, process);
      else process.pgid = process.pid;
      if (action.kind === 'setsid') process.sid = process.pid;
    }
  };
  const [root] = family.actors;
  if (root === undefined) return new Map();
  run(root, undefined);
  const move = (process: Process, group: number | undefined): void => {
    if (group === undefined) return;
    const peer = processes.find((other) => other.pgid === group && other.sid === process.sid);
    assert.ok(peer !== undefined, `group ${group} exists in session ${process.sid} when ${process.pid} joins`);
    process.pgid = group;
  };
  for (const process of processes) move(process, process.actor.joinGroup);
  for (const process of processes) move(process, process.actor.moveToGroup);
  const adoptive = (process: Process | undefined): Process | undefined => {
    if (process === undefined || !process.helper) return process;
    for (let at = process.parent; at !== undefined; at = at.parent)
      if (at.subreaper || at.parent === undefined) return at;
    return undefined;
  };
  return new Map(
    processes
      .filter((process) => !process.helper)
      .map((process) => [
        process.pid,
        member(process.pid, adoptive(process.parent)?.pid ?? 0, process.pgid, process.sid),
      ]),
  );
}

function assertBecomes(members: readonly Member[], helpers: number): void {
  const family = planFamily(members, true);
  assert.deepEqual(family.problems, []);
  assert.deepEqual(
    [...enact(family).values()].sort((a, b) => a.pid - b.pid),
    [...members].sort((a, b) => a.pid - b.pid),
  );
  assert.equal(family.actors.filter((actor) => actor.member === undefined).length, helpers);
}

describe('sessions and groups', () => {
  it('makes one process that leads its session', () => assertBecomes([member(1, 0, 1, 1)], 0));

  it('makes a shell with a job in its own group', () =>
    assertBecomes([member(1, 0, 1, 1), member(7, 1, 7, 1), member(8, 1, 7, 1), member(9, 8, 7, 1)], 0));

  it('makes a child that stayed in the session its parent has left', () =>
    assertBecomes([member(1, 0, 1, 1), member(5, 1, 5, 5), member(6, 5, 1, 1)], 0));

  it('makes the child of a leader whose own parent had to be in an older session, too', () =>
    assertBecomes([member(1, 0, 1, 1), member(5, 1, 5, 5), member(6, 5, 6, 6), member(7, 6, 5, 5)], 0));

  it('makes a daemon whose session leader is gone', () =>
    assertBecomes([member(1, 0, 1, 1), member(19, 1, 18, 18)], 1));

  it('makes two daemons of one session with one helper', () =>
    assertBecomes([member(1, 0, 1, 1), member(19, 1, 18, 18), member(20, 1, 20, 18)], 1));

  it('gives a daemon back to a parent that is not init', () =>
    assertBecomes([member(1, 0, 1, 1), member(4, 1, 4, 4), member(19, 4, 18, 18)], 1));

  it('makes an orphan of a leader that still lives', () =>
    assertBecomes([member(1, 0, 1, 1), member(4, 1, 4, 4), member(9, 1, 4, 4)], 1));

  it('makes a group whose leader is gone', () =>
    assertBecomes([member(1, 0, 1, 1), member(9, 1, 8, 1), member(10, 1, 8, 1)], 1));

  it('makes a group whose leader has moved to another', () =>
    assertBecomes([member(1, 0, 1, 1), member(8, 1, 1, 1), member(9, 1, 8, 1)], 0));

  it('keeps helpers away from numbers that others need', () => {
    const family = planFamily([member(1, 0, 1, 1), member(4, 1, 4, 4), member(301, 1, 4, 4)], true, [302]);
    assert.deepEqual(
      family.actors.filter((actor) => actor.member === undefined).map((actor) => actor.pid),
      [303],
    );
  });

  it('lets a root without a session of its own live in that of its caller', () => {
    const family = planFamily([member(12, 0, 12, 3), member(13, 12, 12, 3)], false);
    assert.equal(family.foreignSession, true);
    assert.equal(family.foreignGroup, false);
    assert.deepEqual(family.problems, []);
  });

  it('says which process cannot be placed', () => {
    const elsewhere = [member(1, 0, 1, 1), member(4, 1, 4, 4), member(5, 1, 5, 5), member(9, 5, 4, 4)];
    assert.deepEqual(
      planFamily(elsewhere, true).problems.map(({ pid }) => pid),
      [9],
    );
  });
});
