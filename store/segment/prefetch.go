package segment

// Prefetch tells the system that n blocks of one segment, from loc on, will be
// read soon. Blocks of segments that are written now are in memory already.
func (l *Log) Prefetch(loc Loc, n int) {
	number, block := l.Locate(loc)
	if loc == 0 || n <= 0 || block+n > l.blocks || l.closed.Load() || l.isLive(number) {
		return
	}
	h, err := l.handle(number)
	if err != nil {
		return // the read itself will say so
	}
	_ = h.f.Prefetch(int64(block)*BlockSize, int64(n)*BlockSize)
	h.release()
}
