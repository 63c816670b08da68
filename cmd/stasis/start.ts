import { startProgram } from '../start-program.js';
import { main } from './main.js';
import { rehearseContainer } from './rehearsal.js';

startProgram(main, rehearseContainer);
