// What a checkpoint is converted from, and into.
import { dialects, type Dialect } from '../../oci-spec/checkpoint-archive.js';

export type SourceForm = Dialect | 'docker' | 'criu' | 'oci';
export type TargetForm = Dialect | 'docker' | 'criu' | 'oci' | 'oci-archive';
export const sourceForms: readonly SourceForm[] = [...dialects, 'docker', 'criu', 'oci'];
export const targetForms: readonly TargetForm[] = [...dialects, 'docker', 'criu', 'oci', 'oci-archive'];

export type Progress = (count: number) => void;

export interface ConversionResult {
  readonly from: SourceForm;
  readonly output: string;
  readonly files: number;
  /** What the new form has no place for, or what its reader will miss. */
  readonly notes: readonly string[];
}
