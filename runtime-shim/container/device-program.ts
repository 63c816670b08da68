// Device rules of a cgroup: first boiled down to a default and exceptions,
// then written to v1's files or as the BPF program that v2 asks on every
// open and mknod.
import { containerDeviceRules, type DeviceRule } from '../../oci-spec/devices.js';
import type { RuntimeConfig } from '../../oci-spec/runtime-config.js';

export interface DevicePolicy {
  readonly allowByDefault: boolean;
  /** Denied if the default is to allow, allowed if it is to deny. */
  readonly exceptions: readonly DeviceException[];
}

export interface DeviceException {
  readonly type: string; // 'b' or 'c'
  readonly major: number; // -1: any
  readonly minor: number;
  readonly permissions: string; // of "rwm"
}

/** A rule for type 'a' starts anew; others add to or take from the exceptions. Containers start from "deny all". */
export function reduceDeviceRules(rules: readonly DeviceRule[]): DevicePolicy {
  let allowByDefault = false;
  let exceptions = new Map<string, DeviceException>();
  for (const rule of rules) {
    if (rule.type === 'a') {
      allowByDefault = rule.allow;
      exceptions = new Map();
      continue;
    }
    const key = `${rule.type} ${rule.major}:${rule.minor}`;
    const now = exceptions.get(key)?.permissions ?? '';
    const permissions = [...'rwm'].filter((letter) =>
      rule.allow === allowByDefault
        ? now.includes(letter) && !rule.permissions.includes(letter)
        : now.includes(letter) || rule.permissions.includes(letter),
    );
    if (permissions.length === 0) exceptions.delete(key);
    else
      exceptions.set(key, { type: rule.type, major: rule.major, minor: rule.minor, permissions: permissions.join('') });
  }
  return { allowByDefault, exceptions: [...exceptions.values()] };
}

/** Whether a container of this spec may have the node in its root file system: one that it is given, or may open. */
export function allowsDevice(
  spec: RuntimeConfig,
  device: { readonly type: 'b' | 'c'; readonly major: number; readonly minor: number },
): boolean {
  const given = (spec.linux?.devices ?? []).some(
    ({ type, major, minor }) =>
      (type === 'u' ? 'c' : type) === device.type && major === device.major && minor === device.minor,
  );
  if (given) return true;
  const policy = reduceDeviceRules(containerDeviceRules(spec, false));
  const touched = policy.exceptions.some(
    ({ type, major, minor, permissions }) =>
      type === device.type &&
      (major < 0 || major === device.major) &&
      (minor < 0 || minor === device.minor) &&
      /[rw]/.test(permissions),
  );
  return touched !== policy.allowByDefault;
}

/** Lines for devices.allow and devices.deny of cgroup v1, in order. */
export function deviceFileWrites(policy: DevicePolicy): { readonly file: string; readonly text: string }[] {
  const [reset, except] = policy.allowByDefault ? ['devices.allow', 'devices.deny'] : ['devices.deny', 'devices.allow'];
  const number = (value: number): string => (value < 0 ? '*' : String(value));
  return [
    { file: reset, text: 'a *:* rwm' },
    ...policy.exceptions.map((exception) => ({
      file: except,
      text: `${exception.type} ${number(exception.major)}:${number(exception.minor)} ${exception.permissions}`,
    })),
  ];
}

// BPF: struct bpf_insn is { u8 code; u8 registers (dst low, src high); s16 offset; s32 immediate }.
const LOAD_WORD = 0x61; // dst = *(u32 *)(src + offset)
const MOVE_REGISTER = 0xbf;
const MOVE_IMMEDIATE = 0xb7;
const AND_IMMEDIATE_32 = 0x54;
const SHIFT_RIGHT_32 = 0x74;
const JUMP_NOT_EQUAL = 0x55;
const JUMP_EQUAL = 0x15;
const EXIT = 0x95;

// struct bpf_cgroup_dev_ctx { u32 access_type; u32 major; u32 minor; }, access_type = access << 16 | type (Linux 4.15).
const typeNumbers: Readonly<Record<string, number>> = { b: 1, c: 2 };
const accessBits: Readonly<Record<string, number>> = { m: 1, r: 2, w: 4 };
const allAccess = 7;

const enum Register {
  R0 = 0,
  CONTEXT = 1,
  TYPE = 2,
  ACCESS = 3,
  MAJOR = 4,
  MINOR = 5,
  SCRATCH = 6,
}

export function deviceProgram(policy: DevicePolicy): Buffer {
  const program: Buffer[] = [
    instruction(LOAD_WORD, Register.TYPE, Register.CONTEXT, 0, 0),
    instruction(MOVE_REGISTER, Register.ACCESS, Register.TYPE, 0, 0),
    instruction(AND_IMMEDIATE_32, Register.TYPE, 0, 0, 0xffff),
    instruction(SHIFT_RIGHT_32, Register.ACCESS, 0, 0, 16),
    instruction(LOAD_WORD, Register.MAJOR, Register.CONTEXT, 4, 0),
    instruction(LOAD_WORD, Register.MINOR, Register.CONTEXT, 8, 0),
  ];
  for (const exception of policy.exceptions) program.push(...exceptionBlock(exception, policy.allowByDefault));
  program.push(...returnValue(policy.allowByDefault ? 1 : 0));
  return Buffer.concat(program);
}

/** Every test that fails jumps behind the block. */
function exceptionBlock(exception: DeviceException, allowByDefault: boolean): Buffer[] {
  const bits = [...exception.permissions].reduce((sum, letter) => sum | (accessBits[letter] ?? 0), 0);
  type Test = (offset: number) => Buffer;
  const notEqual =
    (register: Register, value: number): Test =>
    (offset) =>
      instruction(JUMP_NOT_EQUAL, register, 0, offset, value);
  const parts: (Buffer | Test)[] = [notEqual(Register.TYPE, typeNumbers[exception.type] ?? 0)];
  if (bits !== allAccess || allowByDefault) {
    // To allow, nothing beyond `bits` may be asked for; to deny, one of `bits` is enough.
    parts.push(instruction(MOVE_REGISTER, Register.SCRATCH, Register.ACCESS, 0, 0));
    parts.push(instruction(AND_IMMEDIATE_32, Register.SCRATCH, 0, 0, allowByDefault ? bits : ~bits & allAccess));
    parts.push((offset) => instruction(allowByDefault ? JUMP_EQUAL : JUMP_NOT_EQUAL, Register.SCRATCH, 0, offset, 0));
  }
  if (exception.major >= 0) parts.push(notEqual(Register.MAJOR, exception.major));
  if (exception.minor >= 0) parts.push(notEqual(Register.MINOR, exception.minor));
  parts.push(...returnValue(allowByDefault ? 0 : 1));
  return parts.map((part, index) => (typeof part === 'function' ? part(parts.length - index - 1) : part));
}

function returnValue(value: number): Buffer[] {
  return [instruction(MOVE_IMMEDIATE, Register.R0, 0, 0, value), instruction(EXIT, 0, 0, 0, 0)];
}

function instruction(code: number, destination: number, source: number, offset: number, immediate: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeUInt8(code, 0);
  bytes.writeUInt8((source << 4) | destination, 1);
  bytes.writeInt16LE(offset, 2);
  bytes.writeInt32LE(immediate | 0, 4);
  return bytes;
}
