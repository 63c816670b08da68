// System V semaphore sets of the container's own IPC namespace: keys, ids,
// owners, modes, values. Who waits for one, waits again. What is to be undone
// at the end of a process (SEM_UNDO), and who operated on them last, is lost.
import type { IpcNamespace } from '../../../nativecore/schema/messages.js';
import type { CompileContext } from '../compile-context.js';
import type { EncodeContext } from '../encode-context.js';
import { Phase } from '../plan/builder.js';
import { Struct } from '../struct.js';
import { corrupt, kAtFdCwd, kOCloexec, kOWriteOnly } from './file-common.js';
import { insideGid, insideUid } from './user-namespace.js';

const kModeBits = 0o777;
const kIpcCreate = 0o1000;
const kIpcExclusive = 0o2000;
const kIpcSet = 1;
const kSetAll = 17;
/** SEMMSL can be no more. */
const kMaximalSemaphores = 0xffff;

/** Lines of /proc/sysvipc/sem: key semid perms nsems uid gid cuid cgid ... */
export function encodeSemaphores(ctx: EncodeContext, namespaceId: number, content: IpcNamespace): void {
  for (const line of Buffer.from(content.sysvipcSem).toString('latin1').split('\n').slice(1)) {
    const fields = line.trim().split(/\s+/);
    if (fields.length < 8) continue;
    const number = (index: number): number => Number(fields[index]);
    const id = number(1);
    const values = content.semaphores.find((set) => set.id === id)?.values;
    if (values?.length !== 2 * number(3)) {
      ctx.object(
        'CAPTURE_NAMESPACE_UNSUPPORTED',
        `the values of the System V semaphore set ${id} could not be read`,
        ctx.subjectOfTask(ctx.root),
        'remove it with ipcrm in the container, or stop the program that uses it',
      );
      continue;
    }
    const desc = {
      key: number(0) >>> 0,
      uid: insideUid(ctx, number(4)),
      gid: insideGid(ctx, number(5)),
      cuid: insideUid(ctx, number(6)),
      cgid: insideGid(ctx, number(7)),
      mode: Number.parseInt(fields[2] ?? '0', 8),
      id,
    };
    const padded = new Uint8Array((values.length + 7) & ~7);
    padded.set(values);
    ctx.images.add('ipcns-sem', namespaceId, { desc, nsems: number(3) }, padded);
  }
}

export function compileSemaphores(ctx: CompileContext, namespaceId: number): void {
  const image = `ipcns-sem-${namespaceId}.img`;
  const task = ctx.root.builder;
  for (const { message, payload } of ctx.images.set.entries('ipcns-sem', namespaceId)) {
    const { desc, nsems } = message;
    const { id } = desc;
    if (id > 0x7fffffff || nsems === 0 || nsems > kMaximalSemaphores)
      throw corrupt(image, `has an impossible semaphore set ${id}`);
    const from = `ipcns-sem[${id}]`;
    const file = ctx.plan.slot('kernel/sem_next_id');
    const text = Buffer.from(`${id}`, 'latin1');
    const path = ctx.plan.text('/proc/sys/kernel/sem_next_id');
    task.step(Phase.NAMESPACES, 'openat', [kAtFdCwd, path, kOWriteOnly | kOCloexec, 0], { out: file, from });
    task.step(Phase.NAMESPACES, 'write', [file, ctx.plan.blob(text), text.length], { expected: text.length, from });
    task.step(Phase.NAMESPACES, 'close', [file], { from });
    const flags = kIpcCreate | kIpcExclusive | (desc.mode & kModeBits);
    task.step(Phase.NAMESPACES, 'semget', [desc.key, nsems, flags], { from, expected: id, note: `key ${desc.key}` });
    task.step(Phase.NAMESPACES, 'semctl', [id, 0, kSetAll, ctx.plan.blob(payload.subarray(0, 2 * nsems))], {
      from,
      note: 'SETALL',
    });
    // struct semid64_ds, of which IPC_SET takes uid, gid and mode
    const owners = new Struct(104)
      .setU32(4, desc.uid)
      .setU32(8, desc.gid)
      .setU32(20, desc.mode & kModeBits).bytes;
    task.step(Phase.NAMESPACES, 'semctl', [id, 0, kIpcSet, ctx.plan.blob(owners)], { from, note: 'IPC_SET' });
  }
}
