// FIFOs: a path file that is also a pipe.
import { fd_types } from '../../../oci-spec/images/messages.js';
import type { FileRoom } from '../room.js';
import { corrupt, encodeOwner, fileType, isAnonymousPipe, kFifoType } from './file-common.js';
import { encodePipeData, openFifo } from './pipe.js';
import { pathFileEntry } from './regular-file.js';

export const fifoRoom: FileRoom = {
  kind: 'fifo',
  fdType: fd_types.FIFO,
  claims: (file) => fileType(file) === kFifoType && !isAnonymousPipe(file),

  encode(file, fileId, ctx) {
    const path = pathFileEntry(file, ctx.newFileId(), ctx);
    if (path === undefined) return undefined;
    const inode = file.stat?.inode ?? 0n;
    encodePipeData(ctx, 'fifo-data', inode);
    ctx.addFile({ type: fd_types.REG, id: path.id, reg: { ...path, fown: encodeOwner(file, ctx) } });
    return {
      type: fd_types.FIFO,
      id: fileId,
      fifo: { id: fileId, pipe_id: Number(BigInt.asUintN(32, inode)), regf_id: path.id },
    };
  },

  compile(entry, ctx) {
    const fifo = entry.fifo;
    if (fifo === undefined) throw corrupt('files.img', `has no fifo in entry ${entry.id}`);
    const path = ctx.images.files.get(fifo.regf_id ?? 0)?.reg;
    if (path === undefined) throw corrupt('files.img', `has no path for fifo ${entry.id}`);
    return openFifo(ctx, path.name, fifo.pipe_id, path.flags, `file[${entry.id}]`);
  },
};
