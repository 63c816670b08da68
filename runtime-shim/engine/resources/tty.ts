// Terminals of a container: pseudo-terminals of its own devpts whose master is
// outside, as a runtime leaves them with `terminal: true`. Carried: modes,
// window size, owner, the session that the terminal controls and its
// foreground group. Not carried: what was typed and not read yet, and masters
// that the container itself has open. A restore makes the pair anew and hands
// the master to whoever restores (options.consoleChannel).
import { fd_types, TtyType, type tty_info_entry } from '../../../oci-spec/images/messages.js';
import type { OpenFile } from '../../../nativecore/schema/messages.js';
import type { CompileContext } from '../compile-context.js';
import type { EncodeContext } from '../encode-context.js';
import { Phase, type Operand, type SlotRef, type StepOptions } from '../plan/builder.js';
import type { FileRoom } from '../room.js';
import { Struct } from '../struct.js';
import {
  corrupt,
  descriptorPhrase,
  encodeOwner,
  fileType,
  hold,
  kCharDeviceType,
  kOAsync,
  kOCloexec,
  kONoCtty,
  kOReadWrite,
  openBelowRoot,
  setStatusFlags,
  u32,
} from './file-common.js';
import { pathFileEntry } from './regular-file.js';

/** pts: majors 136 to 143, 256 numbers each (Documentation/admin-guide/devices.txt). */
const kFirstPtsMajor = 136;
const kLastPtsMajor = 143;
const kMinorsPerMajor = 256;
/** Every pair below has to be opened to get a number: more than any container's console. */
const kMaxIndex = 63;

// asm-generic/ioctls.h
const kTioCSctty = 0x540e;
const kTioCSpgrp = 0x5410;
const kTioCSwinsz = 0x5414;
const kTioCSptlck = 0x40045431;
const kTcSets2 = 0x402c542b;

/** struct termios2: four words of flags, the line discipline, 19 control characters, two speeds. */
const kTermios2Bytes = 44;
const kControlCharacters = 19;

/** Fields of /proc/PID/stat. */
const kProcessGroupField = 5;
const kSessionField = 6;
const kTerminalField = 7;
const kForegroundField = 8;

// ---- capture to images

interface Pty {
  readonly device: bigint;
  readonly index: number;
}

function ptyOf(file: OpenFile): Pty | undefined {
  if (fileType(file) !== kCharDeviceType || file.stat === undefined) return undefined;
  const major = Number(file.stat.rdev >> 20n);
  if (major < kFirstPtsMajor || major > kLastPtsMajor) return undefined;
  const index = (major - kFirstPtsMajor) * kMinorsPerMajor + Number(file.stat.rdev & 0xfffffn);
  return { device: file.stat.device, index };
}

/** Is it a terminal of the container's, and not one of the host's that it was given? */
function isOwnTerminal(file: OpenFile): boolean {
  return ptyOf(file) !== undefined && file.pathMatches && file.terminal?.termios.length === kTermios2Bytes;
}

/** /dev/tty: whichever terminal controlled the process that opened it. Shells have one open, and restored it goes by its name. */
function terminalBehind(file: OpenFile, ctx: EncodeContext): OpenFile | undefined {
  if (isOwnTerminal(file)) return file;
  if (fileType(file) !== kCharDeviceType || file.stat?.rdev !== kControllingTerminal || !file.pathMatches)
    return undefined;
  const number = ctx.taskOfHostPid(file.hostPid)?.stat.field(kTerminalField);
  return ctx.capture.openFiles.find((other) => isOwnTerminal(other) && terminalNumber(ptyOf(other) as Pty) === number);
}
const kControllingTerminal = 5n << 20n;

/** As /proc/PID/stat has it: new_encode_dev() of linux/kdev_t.h. */
function terminalNumber(pty: Pty): string {
  const major = kFirstPtsMajor + Math.floor(pty.index / kMinorsPerMajor);
  return String((pty.index % kMinorsPerMajor) | (major << 8));
}

const infoIds = new WeakMap<EncodeContext, Map<string, number>>();

export const ttyRoom: FileRoom = {
  kind: 'tty',
  fdType: fd_types.TTY,
  claims: (file, ctx) => terminalBehind(file, ctx) !== undefined,

  encode(file, fileId, ctx) {
    const terminal = terminalBehind(file, ctx) as OpenFile;
    const pty = ptyOf(terminal) as Pty;
    if (pty.index > kMaxIndex) {
      ctx.object(
        'CAPTURE_FD_UNSUPPORTED',
        `${descriptorPhrase(file, ctx)} is terminal ${pty.index}, ${kMaxIndex} is the highest that can be made again`,
        ctx.subjectOfFile(file),
      );
      return undefined;
    }
    const pathId = ctx.newFileId();
    const reg = pathFileEntry(terminal, pathId, ctx);
    if (reg === undefined) return undefined;
    ctx.addFile({ type: fd_types.REG, id: pathId, reg: { ...reg, pos: 0n } });
    return {
      type: fd_types.TTY,
      id: fileId,
      tty: {
        id: fileId,
        tty_info_id: infoId(terminal, pty, ctx),
        flags: file.statusFlags,
        fown: encodeOwner(file, ctx),
        regf_id: pathId,
      },
    };
  },

  compile(entry, ctx) {
    const tty = entry.tty;
    if (tty === undefined) throw corrupt('files.img', `has no terminal in entry ${entry.id}`);
    if (!terminalsOf(ctx).has(tty.tty_info_id))
      throw corrupt('tty-info.img', `has no terminal ${tty.tty_info_id}, which file ${entry.id} names`);
    const from = `file[${entry.id}]`;
    const path = pathOf(ctx, tty.regf_id, from);
    const low = openBelowRoot(ctx, ctx.root.builder, Phase.FILES, path, tty.flags | kONoCtty, from);
    if ((tty.flags & kOAsync) !== 0) setStatusFlags(ctx.root.builder, Phase.FILES, low, tty.flags, from);
    return hold(ctx, low, path, from);
  },
};

function infoId(file: OpenFile, pty: Pty, ctx: EncodeContext): number {
  let ids = infoIds.get(ctx);
  if (ids === undefined) infoIds.set(ctx, (ids = new Map()));
  const key = `${pty.device}:${pty.index}`;
  let id = ids.get(key);
  if (id === undefined) {
    id = ids.size + 1;
    ids.set(key, id);
    ctx.images.add('tty-info', undefined, infoOf(id, file, pty, ctx));
  }
  return id;
}

function infoOf(id: number, file: OpenFile, pty: Pty, ctx: EncodeContext): tty_info_entry {
  const modes = new Struct(Buffer.from(file.terminal?.termios ?? []));
  const size = file.terminal?.windowSize ?? new Uint8Array(0);
  const { session, group } = controlled(pty, ctx);
  return {
    id,
    type: TtyType.PTY,
    locked: false,
    exclusive: false,
    packet_mode: false,
    sid: session,
    pgrp: group,
    rdev: Number(terminalNumber(pty)),
    termios: {
      c_iflag: modes.u32(0),
      c_oflag: modes.u32(4),
      c_cflag: modes.u32(8),
      c_lflag: modes.u32(12),
      c_line: modes.bytes[16] ?? 0,
      c_ispeed: modes.u32(36),
      c_ospeed: modes.u32(40),
      c_cc: [...modes.bytes.subarray(17, 17 + kControlCharacters)],
    },
    ...(size.length < 8
      ? {}
      : {
          winsize: {
            ws_row: new Struct(Buffer.from(size)).u16(0),
            ws_col: new Struct(Buffer.from(size)).u16(2),
            ws_xpixel: new Struct(Buffer.from(size)).u16(4),
            ws_ypixel: new Struct(Buffer.from(size)).u16(6),
          },
        }),
    pty: { index: pty.index },
    dev: Number(pty.device),
    uid: file.stat?.uid ?? 0,
    gid: file.stat?.gid ?? 0,
  };
}

/** From /proc/PID/stat, because the terminal itself answers only its own session. 0: it controls nobody. */
function controlled(pty: Pty, ctx: EncodeContext): { readonly session: number; readonly group: number } {
  const number = terminalNumber(pty);
  const live = ctx.tasks.filter(({ raw }) => !raw.zombie);
  const member = live.find(({ stat }) => stat.field(kTerminalField) === number);
  if (member === undefined) return { session: 0, group: 0 };
  const innermost = (field: number, wanted: string, key: string): number => {
    const task = live.find(({ stat }) => stat.field(field) === wanted);
    return task?.status.numbers(key).at(-1) ?? 0;
  };
  return {
    session: innermost(kSessionField, member.stat.field(kSessionField), 'NSsid'),
    group: innermost(kProcessGroupField, member.stat.field(kForegroundField), 'NSpgid'),
  };
}

// ---- images to plan

interface PlannedTerminal {
  readonly info: tty_info_entry;
  readonly index: number;
  readonly master: SlotRef;
  /** Its slave, for the leader of the session that it controls; put there in FILES. */
  readonly control: SlotRef;
  made: boolean;
}

const planned = new WeakMap<CompileContext, Map<number, PlannedTerminal>>();

function terminalsOf(ctx: CompileContext): Map<number, PlannedTerminal> {
  let terminals = planned.get(ctx);
  if (terminals !== undefined) return terminals;
  terminals = new Map();
  for (const info of ctx.images.set.messages('tty-info')) {
    const index = info.pty?.index;
    if (index === undefined || info.type !== TtyType.PTY || index > kMaxIndex || terminals.has(info.id)) {
      ctx.object('IMAGE_FEATURE_UNSUPPORTED', `terminal ${info.id} is no pseudo-terminal that can be made again`, {
        image: 'tty-info.img',
      });
      continue;
    }
    terminals.set(info.id, {
      info,
      index,
      master: ctx.plan.slot(`master of terminal ${index}`),
      control: ctx.plan.slot(`terminal ${index}`),
      made: false,
    });
  }
  planned.set(ctx, terminals);
  return terminals;
}

type StepTaker = (op: string, args: readonly Operand[], options: StepOptions) => void;

/**
 * Makes the pairs of a fresh devpts. At once: binds of their slaves, such as
 * /dev/console, follow. Numbers are given out from the lowest free one.
 */
export function makeTerminals(ctx: CompileContext, device: number, devpts: SlotRef, step: StepTaker): void {
  const wanted = [...terminalsOf(ctx).values()].filter(
    ({ info, made }) => !made && (info.dev === undefined || info.dev === device),
  );
  const highest = Math.max(-1, ...wanted.map(({ index }) => index));
  const passed: SlotRef[] = [];
  for (let index = 0; index <= highest; index += 1) {
    const terminal = wanted.find((one) => one.index === index);
    const from = terminal === undefined ? 'tty-info' : `tty-info[${terminal.info.id}]`;
    const master = terminal?.master ?? ctx.plan.slot(`terminal ${index}, passed over`);
    step('openat', [devpts, ctx.plan.text('ptmx'), kOReadWrite | kONoCtty | kOCloexec, 0], {
      out: master,
      from,
      note: `terminal ${index}`,
    });
    if (terminal === undefined) {
      passed.push(master);
      continue;
    }
    terminal.made = true;
    step('ioctl', [master, kTioCSptlck, ctx.plan.blob(u32(0))], { from, note: 'unlock' });
    const { uid, gid } = terminal.info;
    if (uid !== undefined && gid !== undefined)
      step('fchownat', [devpts, ctx.plan.text(String(index)), uid, gid, 0], { from });
  }
  for (const master of passed) step('close', [master], { from: 'tty-info' });
}

/** Phase FILES, before the files: settings of each terminal, and its master on its way out. */
export function settleTerminals(ctx: CompileContext): void {
  for (const terminal of terminalsOf(ctx).values()) {
    const { info, master, control } = terminal;
    const from = `tty-info[${info.id}]`;
    if (!terminal.made) {
      ctx.object('IMAGE_FEATURE_UNSUPPORTED', `terminal ${terminal.index} belongs to no devpts of the images`, {
        image: 'tty-info.img',
      });
      continue;
    }
    const file = [...ctx.images.files.values()].find(({ tty }) => tty?.tty_info_id === info.id)?.tty;
    const path = pathOf(ctx, file?.regf_id, from);
    const task = ctx.root.builder;
    const low = openBelowRoot(ctx, task, Phase.FILES, path, kOReadWrite | kONoCtty, from);
    if (info.termios !== undefined)
      task.step(Phase.FILES, 'ioctl', [low, kTcSets2, ctx.plan.blob(termiosOf(info))], { from, note: 'modes' });
    if (info.winsize !== undefined) {
      const { ws_row: rows, ws_col: columns, ws_xpixel: width, ws_ypixel: height } = info.winsize;
      const size = new Struct(8).setU16(0, rows).setU16(2, columns).setU16(4, width).setU16(6, height);
      task.step(Phase.FILES, 'ioctl', [low, kTioCSwinsz, ctx.plan.blob(size.bytes)], {
        from,
        note: `${columns}x${rows}`,
      });
    }
    hold(ctx, low, control.name, from, { into: control });
    sendMaster(ctx, master, from);
    setForeground(ctx, terminal, from);
  }
}

/** The master must not stay in the tree: the other side of the channel has it then. */
function sendMaster(ctx: CompileContext, master: SlotRef, from: string): void {
  const task = ctx.root.builder;
  const channel = ctx.options.inherited.get(kConsoleChannel);
  if (channel === undefined) {
    ctx.object(
      'BUNDLE_INVALID',
      'the container has a terminal, and nobody is there to take its other side',
      {},
      'pass --console-socket with --detach, and set process.terminal in config.json',
    );
    return;
  }
  // struct iovec, struct cmsghdr with one descriptor, struct msghdr.
  const data = ctx.plan.blob(Buffer.from([0]));
  const part = ctx.plan.blob(new Struct(16).setU64(8, 1n).bytes, [{ offset: 0, blob: data }]);
  const rights = new Struct(24).setU64(0, 20n).setU32(8, kSolSocket).setU32(12, kScmRights);
  const control = ctx.plan.blob(rights.bytes, [{ offset: 16, slot32: master }]);
  const header = new Struct(56).setU64(24, 1n).setU64(40, 24n);
  const message = ctx.plan.blob(header.bytes, [
    { offset: 16, blob: part },
    { offset: 32, blob: control },
  ]);
  task.step(Phase.FILES, 'sendmsg', [ctx.plan.external(kConsoleChannel, channel), message, kMsgNosignal], {
    expected: 1,
    from,
    note: 'the master, to the restoring side',
  });
  task.step(Phase.FILES, 'close', [master], { from });
}
/** Key of options.inherited: a socket that takes the masters, one descriptor a message. */
export const kConsoleChannel = 'console channel';
const kSolSocket = 1;
const kScmRights = 1;
const kMsgNosignal = 0x4000;

/** Right after setsid, before the leader has children: they inherit the controlling terminal. */
export function takeControllingTerminal(ctx: CompileContext, sessionId: number, step: StepTaker): void {
  const terminal = [...terminalsOf(ctx).values()].find(({ info }) => info.sid !== 0 && info.sid === sessionId);
  if (terminal === undefined) return;
  step('ioctl', [terminal.control, kTioCSctty, 0], {
    from: `tty-info[${terminal.info.id}]`,
    note: `terminal ${terminal.index} controls session ${sessionId}`,
  });
}

/** When all groups exist; by the leader, which is in the foreground until then and so may do it. */
function setForeground(ctx: CompileContext, { info, control }: PlannedTerminal, from: string): void {
  const leader = ctx.tasks.get(info.sid);
  if (info.sid === 0 || info.pgrp === 0 || info.pgrp === info.sid || leader === undefined) return;
  if (![...ctx.tasks.values()].some(({ image }) => image.entry.pgid === info.pgrp)) return;
  leader.builder.step(Phase.DESCRIPTORS, 'ioctl', [control, kTioCSpgrp, ctx.plan.blob(u32(info.pgrp))], {
    from,
    note: `group ${info.pgrp} in the foreground`,
  });
}

function termiosOf(info: tty_info_entry): Uint8Array {
  const modes = info.termios!;
  const bytes = new Struct(kTermios2Bytes)
    .setU32(0, modes.c_iflag)
    .setU32(4, modes.c_oflag)
    .setU32(8, modes.c_cflag)
    .setU32(12, modes.c_lflag)
    .setU8(16, modes.c_line)
    .setU32(36, modes.c_ispeed)
    .setU32(40, modes.c_ospeed);
  modes.c_cc.slice(0, kControlCharacters).forEach((character, at) => bytes.setU8(17 + at, character & 0xff));
  return bytes.bytes;
}

function pathOf(ctx: CompileContext, fileId: number | undefined, from: string): string {
  const path = fileId === undefined ? undefined : ctx.images.files.get(fileId)?.reg?.name;
  if (path === undefined || !path.startsWith('/')) throw corrupt('files.img', `has no path for ${from}`);
  return path;
}
