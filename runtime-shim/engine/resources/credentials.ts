// Credentials of every thread: ids, groups, capabilities, securebits,
// no_new_privs, and what a change of ids resets: dumpable, parent death signal.
//
// The kernel's rules give the order:
//   ids first, with NO_SETUID_FIXUP, or they would take the capabilities along;
//   inheritable before the bounding set shrinks: it can only grow inside it;
//   ambient when permitted and inheritable hold it, before securebits forbid it;
//   bounding set and securebits while CAP_SETPCAP is there;
//   permitted and effective; dumpable and death signal after all of them.
import type { core_entry, creds_entry } from '../../../oci-spec/images/messages.js';
import { ProcStatus } from '../proc-text.js';
import type { CompileContext, ImageTask } from '../compile-context.js';
import type { EncodeContext } from '../encode-context.js';
import { Phase, type BlobRef, type TaskBuilder } from '../plan/builder.js';
import type { Room } from '../room.js';
import { Struct } from '../struct.js';
import { capAmbient, prctl } from './prctl.js';
import { forEachThread } from './threads.js';
import { insideGid, insideUid } from './user-namespace.js';

export const credentialsRoom: Room = { kind: 'credentials', encode, compile };
/** The very last steps: nothing after them may change ids. */
export const deathSignalRoom: Room = { kind: 'death-signal', compile: compileDeathSignals };

const kSecbitNoSetuidFixup = 1 << 2;
const kCapSetpcap = 1n << 8n;
/** Highest capability that this code knows (CAP_CHECKPOINT_RESTORE). */
const kLastCapability = 40;
const kCapabilityVersion3 = 0x20080522;
const kEinval = 22;

// ---- raw capture to images

function encode(ctx: EncodeContext): void {
  for (const task of ctx.tasks) {
    if (task.raw.zombie) continue;
    const draft = ctx.draft(task);
    for (const thread of task.raw.threads) {
      const core = draft.threads.get(thread.nsTids.at(-1) ?? thread.hostTid);
      if (core !== undefined)
        core.thread_core.creds = credentialsOf(ctx, new ProcStatus(thread.status), thread.securebits);
    }
  }
}

function credentialsOf(ctx: EncodeContext, status: ProcStatus, securebits: number): creds_entry {
  const [uid = 0, euid = 0, suid = 0, fsuid = 0] = status.numbers('Uid').map((id) => insideUid(ctx, id));
  const [gid = 0, egid = 0, sgid = 0, fsgid = 0] = status.numbers('Gid').map((id) => insideGid(ctx, id));
  const noNewPrivs = status.numbers('NoNewPrivs')[0] ?? 0;
  return {
    uid,
    gid,
    euid,
    egid,
    suid,
    sgid,
    fsuid,
    fsgid,
    cap_inh: words(status.mask('CapInh')),
    cap_prm: words(status.mask('CapPrm')),
    cap_eff: words(status.mask('CapEff')),
    cap_bnd: words(status.mask('CapBnd')),
    secbits: securebits,
    groups: status.numbers('Groups').map((id) => insideGid(ctx, id)),
    ...(noNewPrivs === 0 ? {} : { no_new_privs: noNewPrivs }),
    cap_amb: words(status.mask('CapAmb')),
  };
}

const words = (mask: bigint): number[] => [Number(mask & 0xffffffffn), Number(mask >> 32n)];
const maskOf = (pair: readonly number[]): bigint => BigInt(pair[0] ?? 0) | (BigInt(pair[1] ?? 0) << 32n);

// ---- images to plan

interface Capabilities {
  readonly inheritable: bigint;
  readonly permitted: bigint;
  readonly effective: bigint;
}

function compile(ctx: CompileContext): void {
  for (const planned of ctx.tasks.values()) {
    if (planned.image.zombie) continue;
    forEachThread(planned, (builder, core, tid) => compileThread(ctx, planned.image, builder, core, tid));
  }
}

function compileThread(
  ctx: CompileContext,
  task: ImageTask,
  builder: TaskBuilder,
  core: core_entry,
  tid: number,
): void {
  const creds = core.thread_core?.creds;
  if (creds === undefined) {
    ctx.object('IMAGE_CORRUPT', `"core-${tid}.img" lacks credentials`, { image: `core-${tid}.img` });
    return;
  }
  const from = `core[${tid}].creds`;
  const step = (op: string, ...args: Parameters<TaskBuilder['step']>[2]): void =>
    builder.step(Phase.CREDENTIALS, op, args, { from });

  step('prctl', prctl.SET_SECUREBITS, kSecbitNoSetuidFixup, 0, 0, 0);
  const groups = new Struct(4 * creds.groups.length).setU32s(0, creds.groups);
  step('setgroups', creds.groups.length, creds.groups.length === 0 ? 0 : ctx.plan.blob(groups.bytes));
  step('setresgid', creds.gid, creds.egid, creds.sgid);
  if (creds.fsgid !== creds.egid) step('setfsgid', creds.fsgid);
  step('setresuid', creds.uid, creds.euid, creds.suid);
  if (creds.fsuid !== creds.euid) step('setfsuid', creds.fsuid);

  const grant = ctx.options.kernel.capabilities ?? (1n << 64n) - 1n;
  const wanted = {
    inheritable: maskOf(creds.cap_inh),
    permitted: maskOf(creds.cap_prm),
    effective: maskOf(creds.cap_eff),
  };
  const narrowed = {
    inheritable: wanted.inheritable & grant,
    permitted: wanted.permitted & grant,
    effective: wanted.effective & grant,
  };
  const lost = wanted.permitted & ~grant;
  if (lost !== 0n) {
    ctx.degrade(
      'CAPABILITIES_NARROWED',
      `thread ${tid} of pid ${task.pid} loses capabilities 0x${lost.toString(16)}, which the restoring side does not have`,
      { nsPid: task.pid },
    );
  }
  compileCapabilities(
    ctx,
    builder,
    narrowed,
    maskOf(creds.cap_bnd),
    maskOf(creds.cap_amb) & grant,
    creds.secbits,
    from,
  );
  if ((creds.no_new_privs ?? 0) !== 0) step('prctl', prctl.SET_NO_NEW_PRIVS, 1, 0, 0, 0);

  // a change of ids resets it, and it belongs to the whole process: every thread
  // sets it after its own change, so the last word is the right one
  const dumpable = task.mm?.dumpable ?? 1;
  step('prctl', prctl.SET_DUMPABLE, dumpable === 1 ? 1 : 0, 0, 0, 0);
}

function compileCapabilities(
  ctx: CompileContext,
  builder: TaskBuilder,
  final: Capabilities,
  bounding: bigint,
  ambient: bigint,
  securebits: number,
  from: string,
): void {
  const header = ctx.plan.blob(new Struct(8).setU32(0, kCapabilityVersion3).bytes);
  const capset = (capabilities: Capabilities): void =>
    builder.step(Phase.CREDENTIALS, 'capset', [header, capabilityData(ctx, capabilities)], { from });
  const drops: number[] = [];
  for (let capability = 0; capability <= kLastCapability; capability += 1)
    if ((bounding & (1n << BigInt(capability))) === 0n) drops.push(capability);

  builder.step(Phase.CREDENTIALS, 'prctl', [prctl.CAP_AMBIENT, capAmbient.CLEAR_ALL, 0, 0, 0], { from });
  if (ambient !== 0n || (final.inheritable & ~bounding) !== 0n) {
    const permitted = final.permitted | kCapSetpcap;
    capset({ inheritable: final.inheritable, permitted, effective: permitted });
    for (let capability = 0; capability <= kLastCapability; capability += 1) {
      if ((ambient & (1n << BigInt(capability))) === 0n) continue;
      builder.step(Phase.CREDENTIALS, 'prctl', [prctl.CAP_AMBIENT, capAmbient.RAISE, capability, 0, 0], { from });
    }
  }
  for (const capability of drops) {
    builder.step(Phase.CREDENTIALS, 'prctl', [prctl.CAPBSET_DROP, capability, 0, 0, 0], {
      from,
      // capabilities that an older kernel does not know need not be dropped there
      tolerate: capability > 37 ? [kEinval] : [],
    });
  }
  if (securebits !== kSecbitNoSetuidFixup)
    builder.step(Phase.CREDENTIALS, 'prctl', [prctl.SET_SECUREBITS, securebits, 0, 0, 0], { from });
  capset(final);
}

/** struct __user_cap_data_struct[2]: effective, permitted, inheritable; low words, then high words. */
function capabilityData(ctx: CompileContext, { inheritable, permitted, effective }: Capabilities): BlobRef {
  const data = new Struct(24);
  [effective, permitted, inheritable].forEach((mask, index) => {
    data.setU32(4 * index, Number(mask & 0xffffffffn));
    data.setU32(12 + 4 * index, Number(mask >> 32n));
  });
  return ctx.plan.blob(data.bytes);
}

function compileDeathSignals(ctx: CompileContext): void {
  for (const planned of ctx.tasks.values()) {
    if (planned.image.zombie) continue;
    forEachThread(planned, (builder, core, tid) => {
      const signal = core.thread_core?.pdeath_sig ?? 0;
      if (signal === 0) return;
      if (planned === ctx.root) {
        // the parent of the root is the executor, which leaves when its work is done
        ctx.degrade('DEATH_SIGNAL_DROPPED', `pid ${tid} no longer gets signal ${signal} when its parent dies`, {
          nsPid: planned.image.pid,
        });
        return;
      }
      builder.step(Phase.CREDENTIALS, 'prctl', [prctl.SET_PDEATHSIG, signal, 0, 0, 0], {
        from: `core[${tid}].pdeath_sig`,
      });
    });
  }
}
