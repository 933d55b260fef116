package segment

// Push writes out what was appended so far and returns when the operating
// system has it, so that it outlives the process; nothing is synced. Callers
// that come while another one writes share the next record.
func (l *Log) Push() error {
	want := l.Next() - 1
	if Seq(l.written.Load()) >= want {
		return nil
	}
	l.pushMu.Lock()
	defer l.pushMu.Unlock()
	if Seq(l.written.Load()) >= want {
		return nil
	}
	l.mu.Lock()
	if err := l.usableLocked(); err != nil {
		l.mu.Unlock()
		return err
	}
	want = l.next - 1
	if l.cur != nil {
		l.closeRecordLocked()
	}
	l.mu.Unlock()
	return l.writeOut(want)
}
