package pipelines

import "os"

// exchangeBySteps swaps two directories where the system cannot do it in one step. Between the steps b
// does not exist; should the process die there, its old content is in b + ".old".
func exchangeBySteps(a, b string) error {
	old := b + ".old"
	if err := os.RemoveAll(old); err != nil {
		return err
	}
	if err := os.Rename(b, old); err != nil {
		return err
	}
	if err := os.Rename(a, b); err != nil {
		return err
	}
	return os.Rename(old, a)
}
