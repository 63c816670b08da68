// A checkpoint of any form as a directory.
//
//   Undo            the private directory beside the output is removed
//   If we die here  it stays, and goes with the next one; the output's name is not there
import { basename, dirname } from 'node:path';
import { member } from '../../oci-spec/checkpoint-archive.js';
import { PrivateDirectory } from '../archive/private-directory.js';
import type { ConversionResult, Progress } from './forms.js';
import { loadCheckpoint } from './load-checkpoint.js';
import { writeDirectory } from './write-output.js';

export interface UnpackRequest {
  readonly source: string;
  /** Absolute; must not exist, or be an empty directory. */
  readonly output: string;
  readonly imagesOnly: boolean;
  readonly tag: string | undefined;
  readonly maxBytes: number | undefined;
  readonly onBytes: Progress;
}

/** All members below a directory; with imagesOnly, what restore --image-path reads. */
export async function unpackCheckpoint(request: UnpackRequest): Promise<ConversionResult> {
  using work = new PrivateDirectory(dirname(request.output), 'unpack');
  const loaded = await loadCheckpoint(request.source, request.tag, work.path, request.onBytes, request.maxBytes);
  const wanted = [...loaded.files].filter(([name]) => !request.imagesOnly || name.startsWith(`${member.images}/`));
  await writeDirectory(
    wanted.map(([name, path]) => [request.imagesOnly ? basename(name) : name, path]),
    work.path,
    request.output,
  );
  return { from: loaded.form, output: request.output, files: wanted.length, notes: [] };
}
