// IPC namespace: its sysctls. System V shared memory and semaphores have files
// of their own; message queues are refused by id.
import type { IpcNamespace } from '../../../nativecore/schema/messages.js';
import type { ipc_var_entry } from '../../../oci-spec/images/messages.js';
import type { CompileContext } from '../compile-context.js';
import type { EncodeContext } from '../encode-context.js';
import { Phase } from '../plan/builder.js';
import type { Room } from '../room.js';
import { kAtFdCwd, kOCloexec, kOWriteOnly } from './file-common.js';
import { createsNamespace, imageNamespaceId, namespaceOf } from './namespaces.js';
import { compileSemaphores, encodeSemaphores } from './sysv-semaphores.js';
import { compileSegments, encodeSegments } from './sysv-segments.js';

/** What a fresh namespace has: linux/ipc.h, linux/msg.h, linux/sem.h, linux/shm.h, linux/ipc_namespace.h. */
const fresh: Readonly<Record<string, string>> = {
  'kernel/sem': '32000 1024000000 500 32000',
  'kernel/msgmax': '8192',
  'kernel/msgmnb': '16384',
  'kernel/msgmni': '32000',
  'kernel/auto_msgmni': '0',
  'kernel/shmmax': '18446744073692774399',
  'kernel/shmall': '18446744073692774399',
  'kernel/shmmni': '4096',
  'kernel/shm_rmid_forced': '0',
  'fs/mqueue/queues_max': '256',
  'fs/mqueue/msg_max': '10',
  'fs/mqueue/msgsize_max': '8192',
  'fs/mqueue/msg_default': '10',
  'fs/mqueue/msgsize_default': '8192',
};

export const ipcNamespaceRoom: Room = {
  kind: 'ipc-namespace',

  encode(ctx) {
    const namespace = namespaceOf(ctx, 'ipc');
    if (namespace === undefined || namespace.own || namespace.externalKey !== undefined) return;
    const content = ctx.capture.ipcNamespaces.find(({ inode }) => inode === namespace.inode);
    if (content !== undefined) {
      encodeSegments(ctx, namespace.id, content.sysvipcShm);
      encodeSemaphores(ctx, namespace.id, content);
      objectToObjects(content, ctx);
    }
    const value = (name: string): string => {
      const found = content?.sysctls.find((sysctl) => sysctl.name === name);
      const text =
        found === undefined ? undefined : Buffer.from(found.value).toString('latin1').trim().replace(/\s+/g, ' ');
      return text === undefined || text === '' ? (fresh[name] ?? '0') : text;
    };
    const number = (name: string): number => Number(value(name)) >>> 0;
    ctx.images.add('ipcns-var', namespace.id, {
      sem_ctls: value('kernel/sem').split(' ').map(Number),
      msg_ctlmax: number('kernel/msgmax'),
      msg_ctlmnb: number('kernel/msgmnb'),
      msg_ctlmni: number('kernel/msgmni'),
      auto_msgmni: number('kernel/auto_msgmni'),
      shm_ctlmax: BigInt(value('kernel/shmmax')),
      shm_ctlall: BigInt(value('kernel/shmall')),
      shm_ctlmni: number('kernel/shmmni'),
      shm_rmid_forced: number('kernel/shm_rmid_forced'),
      mq_queues_max: number('fs/mqueue/queues_max'),
      mq_msg_max: number('fs/mqueue/msg_max'),
      mq_msgsize_max: number('fs/mqueue/msgsize_max'),
      mq_msg_default: number('fs/mqueue/msg_default'),
      mq_msgsize_default: number('fs/mqueue/msgsize_default'),
    });
  },

  compile(ctx) {
    const id = imageNamespaceId(ctx, 'ipc');
    if (id === undefined) return;
    for (const image of ['ipcns-msg'] as const) {
      if ((ctx.images.set.raw(`${image}-${id}.img`)?.length ?? 0) > 8)
        ctx.object('IMAGE_FEATURE_UNSUPPORTED', `"${image}-${id}.img" holds System V objects, which are not carried`, {
          image: `${image}-${id}.img`,
        });
    }
    if (!createsNamespace(ctx, 'ipc')) {
      for (const [kind, what] of [
        ['ipcns-shm', 'shared memory'],
        ['ipcns-sem', 'semaphores'],
      ] as const)
        if (ctx.images.set.entries(kind, id).length > 0)
          ctx.object(
            'IMAGE_FEATURE_UNSUPPORTED',
            `the container has System V ${what}, and joins an IPC namespace in which they cannot be made again`,
            { image: `${kind}-${id}.img` },
          );
      return;
    }
    compileSysctls(ctx, id);
    // its limits allow what is there
    compileSegments(ctx, id);
    compileSemaphores(ctx, id);
  },
};

function compileSysctls(ctx: CompileContext, id: number): void {
  const variables = ctx.images.set.maybe('ipcns-var', id);
  if (variables === undefined) return;
  const task = ctx.root.builder;
  const from = `ipcns-var-${id}`;
  for (const [name, value] of sysctlsOf(variables)) {
    if (value === fresh[name]) continue;
    // Through the caller's /proc, which is still mounted: these files act on the IPC namespace of the task that opens them.
    const file = ctx.plan.slot(name);
    task.step(Phase.NAMESPACES, 'openat', [kAtFdCwd, ctx.plan.text(`/proc/sys/${name}`), kOWriteOnly | kOCloexec, 0], {
      out: file,
      from,
    });
    const bytes = Buffer.from(value, 'latin1');
    task.step(Phase.NAMESPACES, 'write', [file, ctx.plan.blob(bytes), bytes.length], {
      expected: bytes.length,
      from,
      note: value,
    });
    task.step(Phase.NAMESPACES, 'close', [file], { from });
  }
}

function sysctlsOf(variables: ipc_var_entry): [string, string][] {
  const values: [string, string][] = [
    ['kernel/sem', variables.sem_ctls.join(' ')],
    ['kernel/msgmax', `${variables.msg_ctlmax}`],
    ['kernel/msgmnb', `${variables.msg_ctlmnb}`],
    ['kernel/msgmni', `${variables.msg_ctlmni}`],
    ['kernel/shmmax', `${variables.shm_ctlmax}`],
    ['kernel/shmall', `${variables.shm_ctlall}`],
    ['kernel/shmmni', `${variables.shm_ctlmni}`],
    ['kernel/shm_rmid_forced', `${variables.shm_rmid_forced}`],
    ['fs/mqueue/queues_max', `${variables.mq_queues_max}`],
    ['fs/mqueue/msg_max', `${variables.mq_msg_max}`],
    ['fs/mqueue/msgsize_max', `${variables.mq_msgsize_max}`],
  ];
  if (variables.mq_msg_default !== undefined) values.push(['fs/mqueue/msg_default', `${variables.mq_msg_default}`]);
  if (variables.mq_msgsize_default !== undefined)
    values.push(['fs/mqueue/msgsize_default', `${variables.mq_msgsize_default}`]);
  return values;
}

/** /proc/sysvipc tables: a heading, then a line per object with key and id first. */
function objectToObjects(namespace: IpcNamespace, ctx: EncodeContext): void {
  const tables = [['message queue', namespace.sysvipcMsg]] as const;
  for (const [what, table] of tables) {
    for (const line of Buffer.from(table).toString('latin1').split('\n').slice(1)) {
      const id = line.trim().split(/\s+/)[1];
      if (id === undefined) continue;
      ctx.object(
        'CAPTURE_NAMESPACE_UNSUPPORTED',
        `the container has a System V ${what} (id ${id}), whose content is not carried`,
        ctx.subjectOfTask(ctx.root),
        `remove it with ipcrm in the container, or stop the program that uses it`,
      );
    }
  }
}
