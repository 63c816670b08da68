import { startProgram } from '../start-program.js';
import { main } from './main.js';

startProgram(main);
